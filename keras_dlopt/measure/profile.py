"""`profile_fit`: where the time of a training step goes."""

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.callbacks.preparing import is_plain, prepare
from keras_dlopt.drawing import PARTS as COLORS
from keras_dlopt.drawing import RED, drawing, finished
from keras_dlopt.errors import ConfigError, DataError, ModelError
from keras_dlopt.graph.walk import layers_below

PARTS = ("data wait", "forward", "backward", "optimizer", "metrics", "host")
# A last step that takes longer than this many usual ones, and half a second, stalls.
STALL_STEPS, STALL_SECONDS = 20, 0.5


@dataclasses.dataclass(frozen=True)
class StepProfile:
    """Seconds per training step, by part.

    Attributes:
        seconds: part -> seconds of one step; the parts sum up to the whole step, up to
            noise: a part that came out below zero is given as 0.
        step_seconds: of one step of `fit` on the given data.
        stall_seconds: from the end of the last step to the end of `fit`.
        batch_size: examples in a step.
        advice: what would shorten the step, most first.
    """

    seconds: Mapping[str, float]
    step_seconds: float
    stall_seconds: float
    batch_size: int
    advice: tuple[str, ...]

    def table(self) -> str:
        """The parts as text, one line each."""
        lines = [f"{'part':<12}{'ms/step':>10}{'share':>8}"]
        for part, value in self.seconds.items():
            share = value / self.step_seconds
            lines.append(f"{part:<12}{value * 1e3:>10.2f}{share:>8.0%}")
        lines.append(f"{'step':<12}{self.step_seconds * 1e3:>10.2f}{1:>8.0%}")
        lines.append(f"{'end of fit':<12}{self.stall_seconds * 1e3:>10.2f}")
        return "\n".join([*lines, *(f"- {text}" for text in self.advice)])

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """The parts as one stacked bar.

        Args:
            path: of the file to write, `.png` or `.svg`; None writes nothing.

        Returns:
            The `matplotlib.figure.Figure`.
        """
        figure, axes = drawing(2.0)
        left = 0.0
        for color, (part, value) in zip(
            itertools.cycle((*COLORS, RED)), self.seconds.items(), strict=False
        ):
            axes.barh([0], [value * 1e3], left=left, label=part, color=color)
            left += value * 1e3
        axes.set_yticks([])
        axes.set_xlabel(f"ms per step of {self.batch_size} examples")
        axes.legend(ncols=3, loc="upper center", fontsize=8.5, frameon=False)
        axes.set_ylim(-0.5, 2.2)
        return finished(figure, path)


def profile_fit(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    batch_size: int = 32,
    steps: int = 20,
    rounds: int = 3,
) -> StepProfile:
    """Measures the parts of a training step of a compiled model.

    Five runs, interleaved over `rounds`, each with more in it than the one before:

        forward     the model and its loss, on one batch
        backward    the same with gradients
        optimizer   the same with the update
        metrics     the whole `train_step`, on one batch
        host        `fit` on that batch again and again: Python, callbacks, iterator
        data wait   `fit` on the given data

    A part is the difference to the one before, the median over steps and rounds. What
    the pipeline prepares while a step runs does not count as waiting.

    Weights, optimizer state and metrics are put back at the end.

    Args:
        model: compiled with an optimizer; TensorFlow backend, one device. One that its
            first batch builds is built, without a step.
        x: as for `fit`: arrays, or a `tf.data.Dataset` of `(x, y)` batches.
        y: targets, where `x` is an array.
        batch_size: examples per step, where `x` is an array.
        steps: steps per run.
        rounds: number of times each run is repeated.

    Raises:
        ModelError: for a model that is not compiled, and for one that is not built
            where its train step cannot be traced, or its parts not apart.
        DataError: for data without a single full batch.
        ConfigError: on backends other than TensorFlow.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile("adam", "mse")
        >>> profile = profile_fit(
        ...     model, np.zeros((64, 4)), np.zeros((64, 2)), steps=2, rounds=1
        ... )
        >>> list(profile.seconds)
        ['data wait', 'forward', 'backward', 'optimizer', 'metrics', 'host']
    """
    _check(model, steps, rounds)
    batch, given = _inputs(x, y, batch_size, steps)
    prepare(model, model.train_step, _spec(batch))
    kept = _snapshot(model)
    try:
        model.fit(verbose=0, **given)  # traces the step
        totals, stall = _measure(model, batch, given, steps, rounds)
    finally:
        _restore(model, kept)
    seconds = _differences(totals)
    return StepProfile(
        seconds=seconds,
        step_seconds=totals["fit"],
        stall_seconds=stall,
        batch_size=int(keras.tree.flatten(batch)[0].shape[0]),
        advice=_advice(model, seconds, totals["fit"], stall),
    )


def _check(model: keras.Model, steps: int, rounds: int) -> None:
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            "profile_fit times TensorFlow functions. Received: backend "
            f"{keras.backend.backend()!r}. Use jax.profiler there."
        )
    checks.whole(steps, name="steps", least=2)
    checks.count(rounds, name="rounds")
    if not model.compiled or model.optimizer is None:
        raise ModelError(
            f"{model.name} must be compiled with an optimizer. Call compile() first."
        )


def _inputs(x, y, batch_size: int, steps: int) -> tuple[Any, dict[str, Any]]:
    """One batch, and the arguments of `fit` for `steps` batches of the given data."""
    import tensorflow as tf

    if isinstance(x, tf.data.Dataset):
        given = x.repeat().take(steps)
        batch = next(iter(given), None)
        if batch is None:
            raise DataError("The data set is empty. Give at least one batch.")
        known = given.apply(tf.data.experimental.assert_cardinality(steps))
        return batch, {"x": known, "shuffle": False}
    count = len(keras.tree.flatten(x)[0])
    if count < batch_size:
        raise DataError(
            f"Received {count} examples, fewer than one batch of {batch_size}. Give "
            "more, or a smaller batch_size."
        )
    rows = np.resize(np.arange(count // batch_size * batch_size), batch_size * steps)

    def pick(values, rows):
        return keras.tree.map_structure(lambda v: np.asarray(v)[rows], values)

    whole = keras.utils.pack_x_y_sample_weight(x, y)
    batch = keras.tree.map_structure(
        tf.convert_to_tensor, pick(whole, rows[:batch_size])
    )
    many = {"x": pick(x, rows), "y": None if y is None else pick(y, rows)}
    return batch, {**many, "batch_size": batch_size}


def _spec(batch: Any) -> Any:
    """What a batch is made of, of any number of examples."""
    import tensorflow as tf

    return keras.tree.map_structure(
        lambda v: tf.TensorSpec([None, *v.shape[1:]], v.dtype), batch
    )


def _snapshot(model: keras.Model) -> list[tuple[Any, np.ndarray]]:
    variables = {id(v): v for v in (*model.variables, *model.optimizer.variables)}
    return [(v, keras.ops.convert_to_numpy(v.value).copy()) for v in variables.values()]


def _restore(model: keras.Model, kept) -> None:
    for variable, value in kept:
        variable.assign(value)
    model.reset_metrics()


def _measure(model, batch, given, steps, rounds) -> tuple[dict[str, float], float]:
    import tensorflow as tf

    same = tf.data.Dataset.from_tensors(batch).repeat(steps)
    options = tf.data.Options()
    options.autotune.enabled = False
    again = {"x": same.with_options(options), "shuffle": False}
    runs = _step_functions(model, batch)
    times: dict[str, list[float]] = {name: [] for name in (*runs, "same batch", "fit")}
    stalls = []
    _warm(model, runs)
    for _ in range(rounds):
        for name, run in runs.items():
            for _ in range(steps):
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
        times["same batch"] += _timed_fit(model, again)[0]
        spans, stall = _timed_fit(model, given)
        times["fit"] += spans
        stalls.append(stall)
    return {name: float(np.median(v)) for name, v in times.items()}, max(stalls)


def _warm(model, runs) -> None:
    """Traces each part.

    Raises:
        ModelError: for a train step of the model's own that does what its parts do not.
    """
    try:
        for run in runs.values():
            run()
    except Exception as error:
        if is_plain(model.train_step):
            raise
        raise ModelError(
            f"The parts of {type(model).__name__}.train_step cannot be timed apart: "
            "model(x) and compute_loss(x, y, y_pred, sample_weight) fail on the data "
            "as fit gives it. Give data with targets, or time fit as a whole with "
            "tf.profiler."
        ) from error


def _step_functions(model, batch) -> dict[str, Callable[[], Any]]:
    """Compiled functions of one batch, each doing more than the one before."""
    import tensorflow as tf

    x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
    weights = [v.value for v in model.trainable_variables]
    compiled = {"jit_compile": bool(model.jit_compile)}

    def forward():
        y_pred = model(x, training=True)
        loss = model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=weight)
        return model.optimizer.scale_loss(loss)

    def backward():
        with tf.GradientTape() as tape:
            loss = forward()
        return tape.gradient(loss, weights)

    def update():
        model.optimizer.apply(backward(), model.trainable_variables)

    def whole():
        return model.train_step(batch)

    def ready(function):
        compiled_function = tf.function(function, **compiled)

        def run():
            for value in tf.nest.flatten(compiled_function())[:1]:
                value.numpy()  # wait for it

        return run

    def gradient_norm():
        # All gradients are needed, so none is pruned from the graph.
        grads = [g for g in backward() if g is not None]
        return tf.add_n([tf.reduce_sum(tf.cast(g, "float32")) for g in grads])

    def updated():
        update()
        return model.optimizer.iterations.value

    runs = {
        "forward": forward,
        "backward": gradient_norm,
        "optimizer": updated,
        "metrics": whole,
    }
    return {name: ready(function) for name, function in runs.items()}


class _Clock(keras.callbacks.Callback):
    """The times at which steps end."""

    def __init__(self):
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())


def _timed_fit(model, given) -> tuple[list[float], float]:
    """Seconds between the ends of steps, and from the last end to the end of `fit`."""
    clock = _Clock()
    model.fit(verbose=0, callbacks=[clock], **given)
    end = time.perf_counter()
    every = max(model.steps_per_execution, 1)
    return list(np.diff(clock.ends) / every), end - clock.ends[-1]


def _differences(totals: Mapping[str, float]) -> dict[str, float]:
    order = ("forward", "backward", "optimizer", "metrics", "same batch", "fit")
    names = ("forward", "backward", "optimizer", "metrics", "host", "data wait")
    values, before = {}, 0.0
    for name, key in zip(names, order, strict=True):
        values[name] = max(totals[key] - before, 0.0)
        before = totals[key]
    return {part: values[part] for part in PARTS}


def _advice(model, seconds, step: float, stall: float) -> tuple[str, ...]:
    found: list[tuple[float, str]] = []

    def add(part: str, least: float, text: str) -> None:
        share = seconds[part] / step
        if share > least:
            found.append((share, f"{part} takes {share:.0%} of the step: {text}"))

    add(
        "data wait",
        0.1,
        "feed keras_dlopt.data.batches(...), or prefetch and cache in tf.data",
    )
    add(
        "host",
        0.15,
        "compile with steps_per_execution of 8 to 32, or use larger batches",
    )
    if not type(model.optimizer).__module__.startswith("keras_dlopt"):
        add("optimizer", 0.1, "use the fused optimizers of keras_dlopt.optimizers")
    add("metrics", 0.1, "drop metrics that only the validation needs")
    if any(type(v) is keras.layers.BatchNormalization for v in layers_below(model)):
        text = "Keras' BatchNormalization is composed of many ops: use_fused(model)"
        found.append(((seconds["forward"] + seconds["backward"]) / step, text))
    if stall > max(STALL_SECONDS, STALL_STEPS * step):
        text = (
            f"fit ended {stall:.1f} s after its last step: tf.data's autotuning can "
            "hold it; set options.autotune.enabled = False on the data set, as "
            "keras_dlopt.data.batches does"
        )
        found.append((1.0, text))
    return tuple(text for _, text in sorted(found, reverse=True))
