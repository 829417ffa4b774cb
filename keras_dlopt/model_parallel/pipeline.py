"""A model cut into stages, a device each, with micro-batches; TensorFlow backend."""

import itertools
from collections.abc import Sequence
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import ConfigError, DataError, ModelError
from keras_dlopt.graph import hooks
from keras_dlopt.graph.live import carry_settings
from keras_dlopt.graph.walk import is_functional, own_layers


class Pipeline(keras.Model):
    """Trains a model whose layers lie on several devices, a batch in parts.

    The layers are cut into consecutive stages of about equal numbers of weights. Each
    stage's variables, its arithmetic and its optimizer state are on its own device. A
    batch is split into micro-batches: while one is in the second stage, the next is in
    the first. TensorFlow's executor does the scheduling, so this is a schedule of "all
    micro-batches as soon as they can", not 1F1B: activations of all are kept.

    The gradient is the mean over the batch, as without a pipeline, for losses that are
    means. Micro-batches of a batch that is no multiple differ by one example and count
    by examples. BatchNormalization sees a micro-batch at a time.

    Args:
        model: built Sequential or Functional model; a copy with its weights is made.
        devices: a device a stage, such as `["GPU:0", "GPU:1"]`.
        micro_batches: parts of a batch; the smallest batch must have as many examples.
        cuts: index of the first layer of each stage but the first; None to balance.

    Raises:
        ConfigError: on another backend, for fewer than one micro-batch, devices that do
            not exist, or cuts that leave a stage empty.
        ModelError: for a model that is not built, or neither of the two kinds.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        devices: Sequence[str],
        micro_batches: int = 4,
        cuts: Sequence[int] | None = None,
        **kwargs: Any,
    ):
        _check(model, devices, micro_batches)
        kwargs.setdefault("name", model.name)
        super().__init__(**kwargs)
        self.devices, self.micro_batches = list(devices), micro_batches
        listed = own_layers(model)
        sizes = [layer.count_params() for layer in listed]
        self.cuts = _balanced(sizes, len(devices)) if cuts is None else list(cuts)
        bounds = [0, *self.cuts, len(sizes)]
        if len(bounds) != len(devices) + 1 or any(
            b <= a for a, b in itertools.pairwise(bounds)
        ):
            raise ConfigError(
                f"cuts must be {len(devices) - 1} rising layer numbers between 1 and "
                f"{len(sizes) - 1}, one a stage but the first. Received: {self.cuts}."
            )
        self.stages = {
            layer.name: stage
            for stage, (first, last) in enumerate(itertools.pairwise(bounds))
            for layer in listed[first:last]
        }
        self.model = self._placed(model)
        self.built = True

    def _placed(self, model: keras.Model) -> keras.Model:
        """A copy whose variables are created, and whose layers run, on the devices."""
        import tensorflow as tf

        def place(layer: Any) -> Any:
            device = self.devices[self.stages[layer.name]]
            with tf.device(device):  # a nested model has its variables from the start
                copy = layer.__class__.from_config(layer.get_config())
                if layer.built and layer.weights:
                    copy.build_from_config(layer.get_build_config())
            hooks.attach(copy, _on(device))
            return copy

        copy = keras.models.clone_model(model, clone_function=place)
        copy.set_weights(model.get_weights())
        carry_settings(model, copy)
        return copy

    def build(self, input_shape: Any = None) -> None:
        self.built = True

    def get_config(self) -> dict[str, Any]:
        raise ModelError(
            "A Pipeline is of this machine's devices and is not saved. Save its "
            "`model`, an ordinary model with the same weights, or save_weights."
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.model(inputs, training=training)

    def compile(
        self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any
    ) -> None:
        """As `keras.Model.compile`; the optimizer's state goes to the stages."""
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        if self.optimizer is not None and not self.optimizer.built:
            _compat.state_beside_weights(self.optimizer)
            self.optimizer.build(self.trainable_variables)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step over all micro-batches."""
        import tensorflow as tf

        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        count, sizes = _sizes(x, self.micro_batches)
        parts = [_split(value, sizes, self.micro_batches) for value in (x, y, weight)]
        total, outputs, losses = None, [], []
        for number, (one_x, one_y, one_weight) in enumerate(zip(*parts, strict=True)):
            share = tf.cast(sizes[number], "float32") / tf.cast(count, "float32")
            with tf.GradientTape() as tape:
                predicted = self(one_x, training=True)
                loss = self.compute_loss(
                    x=one_x,
                    y=one_y,
                    y_pred=predicted,
                    sample_weight=one_weight,
                    training=True,
                )
                scaled = self.optimizer.scale_loss(loss * tf.cast(share, loss.dtype))
            gradients = tape.gradient(scaled, self.trainable_variables)
            total = gradients if total is None else self._sum(total, gradients)
            outputs.append(predicted)
            losses.append(loss * tf.cast(share, loss.dtype))
        self.optimizer.apply(total, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(tf.add_n(losses), sample_weight=count)
        joined = tf.nest.map_structure(lambda *p: tf.concat(p, 0), *outputs)
        logs: dict[str, Any] = self.compute_metrics(x, y, joined, weight)
        return logs

    def _sum(self, left: list[Any], right: list[Any]) -> list[Any]:
        import tensorflow as tf

        found = []
        for variable, a, b in zip(self.trainable_variables, left, right, strict=True):
            if a is None or b is None:
                found.append(b if a is None else a)
                continue
            with tf.device(variable.value.device):
                found.append(tf.convert_to_tensor(a) + tf.convert_to_tensor(b))
        return found

    def placement(self) -> dict[str, str]:
        """Device of every variable, the optimizer's included: path -> device."""
        optimizer = getattr(self, "optimizer", None)  # none before compile
        held = [*self.variables, *getattr(optimizer, "variables", ())]
        return {v.path: v.value.device.rsplit("device:", 1)[-1] for v in held}


def _check(model: Any, devices: Sequence[str], micro_batches: int) -> None:
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            "Pipeline is for the TensorFlow backend. Received: "
            f"{keras.backend.backend()}. On JAX use split_model."
        )
    if not isinstance(model, keras.Model) or not model.built:
        raise ModelError(
            "Pipeline takes a built Sequential or Functional model. Received: "
            f"{model!r}. Start it with keras.Input."
        )
    if not is_functional(model):
        raise ModelError(
            f"{model.name!r} is a subclassed model, whose layers have no order that "
            "could be cut. Write it with the Functional API, or use SplitTrainer."
        )
    if not isinstance(micro_batches, int) or micro_batches < 1:
        raise ConfigError(
            f"micro_batches must be a whole number of at least 1. "
            f"Received: {micro_batches!r}."
        )
    import tensorflow as tf

    known = [d.name.removeprefix("/device:") for d in tf.config.list_logical_devices()]
    wrong = [d for d in devices if d.removeprefix("/device:") not in known]
    if wrong or not devices:
        raise ConfigError(
            f"devices must be some of {known}. Received: {list(devices)}. For a trial "
            "on a CPU make logical devices before TensorFlow starts."
        )


def _on(device: str) -> hooks.Hook:
    import tensorflow as tf

    def placed(call: hooks.Called, given: hooks.Given) -> Any:
        with tf.device(device):
            return call(given)

    return placed


def _balanced(sizes: Sequence[int], stages: int) -> list[int]:
    """First layers of the stages; their numbers of weights have the least squares.

    Example:
        >>> _balanced([0, 10, 10, 0, 20], 2)
        [3]
    """
    # best[k][n]: the least sum of squares, for the first n layers in k + 1 stages.
    sums = [0, *itertools.accumulate(sizes)]
    count = len(sizes)
    best = [[float(total) ** 2 for total in sums]]
    firsts: list[list[int]] = [[0] * (count + 1)]
    for k in range(1, stages):
        row, first = [float("inf")] * (count + 1), [0] * (count + 1)
        for n in range(k + 1, count + 1):
            for cut in range(k, n):
                squares = best[k - 1][cut] + float(sums[n] - sums[cut]) ** 2
                if squares < row[n]:
                    row[n], first[n] = squares, cut
        best.append(row)
        firsts.append(first)
    cuts, end = [], count
    for k in range(stages - 1, 0, -1):
        end = firsts[k][end]
        cuts.append(end)
    return cuts[::-1]


def _sizes(x: Any, parts: int) -> tuple[Any, Any]:
    """The number of examples in a batch, and in each of its parts."""
    import tensorflow as tf

    first = tf.nest.flatten(x)[0]
    count = first.shape[0] if first.shape[0] is not None else tf.shape(first)[0]
    text = (
        f"A batch must have an example for each of the {parts} micro-batches. Leave "
        "the last examples out, or choose another batch size or micro_batches."
    )
    if isinstance(count, int):
        if count < parts:
            raise DataError(f"{text} Received: a batch of {count}.")
        return count, [count // parts + (i < count % parts) for i in range(parts)]
    with tf.control_dependencies([tf.debugging.assert_less_equal(parts, count, text)]):
        return count, count // parts + tf.cast(tf.range(parts) < count % parts, "int32")


def _split(value: Any, sizes: Any, parts: int) -> list[Any]:
    import tensorflow as tf

    if value is None:
        return [None] * parts
    pieces = [tf.split(leaf, sizes, num=parts) for leaf in tf.nest.flatten(value)]
    return [
        tf.nest.pack_sequence_as(value, list(piece))
        for piece in zip(*pieces, strict=True)
    ]
