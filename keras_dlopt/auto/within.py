"""Training a model within a time: optimizer, rate and batch chosen on validation."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.auto.fitting import check_fits
from keras_dlopt.auto.training import Job, job_for
from keras_dlopt.auto.wanted import check_model
from keras_dlopt.callbacks import LearningRateFinder
from keras_dlopt.errors import ConfigError, DataError
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.optimizers import AdamW, Adan
from keras_dlopt.report import Progress, Recorder, Silent

_BATCHES = (64, 256)
_TESTED = 60  # steps of a range test
_WARM = 0.05  # of the steps
_SEARCHED = 0.4  # of the time, at most

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "AdamW": lambda rate: AdamW(rate, weight_decay=0.01),
    "SGD": lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
    "Adan": lambda rate: Adan(rate),
}


@dataclasses.dataclass(frozen=True)
class Training:
    """One training that was done.

    Attributes:
        optimizer: one of `OPTIMIZERS`.
        rate: after the warm-up; it falls to 0 by a cosine.
        batch_size: examples a step.
        epochs: over the training examples.
        accuracy: on the validation examples; None for models that do not classify.
        loss: on the validation examples.
        seconds: that it took.
    """

    optimizer: str
    rate: float
    batch_size: int
    epochs: int
    accuracy: float | None
    loss: float
    seconds: float

    def __str__(self) -> str:
        right = "" if self.accuracy is None else f", {self.accuracy:.2%} right"
        return (
            f"{self.optimizer} at {self.rate:.2g}, batches of {self.batch_size}, "
            f"{self.epochs} epochs: loss {self.loss:.4g}{right}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedWithin:
    """A trained model, and how it came about.

    Attributes:
        model: the trained copy, compiled.
        final: its training.
        tried: the short ones before, best first.
        reasons: a sentence for each choice.
        seconds: that all of it took.
    """

    model: keras.Model
    final: Training
    tried: tuple[Training, ...]
    reasons: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        return "\n".join([str(self.final), *self.reasons])


def train_within(
    model: keras.Model,
    data: Any,
    val: Any = None,
    *,
    time_budget: float,
    loss: Any = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainedWithin:
    """Trains a model within a time, with what did best on validation examples.

    For each of three optimizers and two batch sizes a range test finds the rate, and an
    epoch from the given weights is judged, within 40 % of the time. The best is trained
    from the given weights for the epochs that the rest allows, its rate warmed up over
    5 % of the steps and brought down by a cosine. Warm-up and cosine are not searched.

    Args:
        model: a built Keras model, which stays as it is.
        data: `(x, y)` or a `data.Dataset` of arrays.
        val: examples to judge on; None holds out a tenth, drawn by the seed, or takes
            those of a `data.Dataset`.
        time_budget: seconds. The first epoch is done whatever it takes.
        loss: None takes the compiled one, or the one that labels of classes mean.
        seed: of shuffling; Keras' global seed is set to it.
        progress: is told how far the work is.

    Raises:
        ConfigError: if no loss is known, or every training diverged.
        DataError: for data that does not fit, or is no arrays.
        ModelError: for a model that is not built or cannot be copied.

    Example:
        >>> digits = dlopt.data.load("digits")
        >>> net = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
        ...     keras.layers.Dense(32, "relu"), keras.layers.Dense(10)])
        >>> made = train_within(net, digits, time_budget=1.0)
        >>> made.final.optimizer in OPTIMIZERS
        True

    Source: Smith, "Cyclical Learning Rates" (arXiv:1506.01186), for the range test;
    Loshchilov and Hutter, "SGDR" (arXiv:1608.03983), for the cosine.
    """
    start = time.perf_counter()
    check_model(model)
    check_fits(model, data, val)
    budget = checks.positive(time_budget, name="time_budget")
    job = job_for(
        model,
        data,
        val,
        loss=loss,
        batch_size=_BATCHES[0],
        epochs=1,
        teacher=False,
        seed=seed,
        progress=progress,
    )
    if not isinstance(job.train, tuple | list):
        raise DataError(
            "train_within chooses the batch size, and so needs arrays. Received: "
            f"{type(job.train).__name__}. Pass (x, y)."
        )
    tried, reasons = _tried(job, start, budget)
    best = tried[0]
    left = budget - (time.perf_counter() - start)
    epochs = max(1, math.floor(0.9 * left / best.seconds))
    trained, final = _fit(job, best.optimizer, best.rate, best.batch_size, epochs)
    if not math.isfinite(final.loss):
        raise ConfigError(
            f"{final}: it diverged. Look at the data with report.doctor, or train with "
            "a lower rate yourself."
        )
    reasons += [
        f"{final.epochs} epochs: what {budget:.4g} s leave after the short trainings",
    ]
    seconds = time.perf_counter() - start
    return TrainedWithin(trained, final, tuple(tried), tuple(reasons), seconds)


def _tried(job: Job, start: float, budget: float) -> tuple[list[Training], list[str]]:
    """The short trainings, best first, and why the best is taken."""
    tried: list[Training] = []
    reasons = []
    size = len(keras.tree.flatten(job.train[1])[0])
    # A batch in each of four steps, at the least.
    batches = [n for n in _BATCHES if 4 * n <= size] or [max(1, size // 4)]
    for name in OPTIMIZERS:
        for batch in batches:
            spent = time.perf_counter() - start
            if tried and spent + tried[-1].seconds > _SEARCHED * budget:
                reasons = ["the time ended the search"]
                break
            rate = _range_test(job, name, batch)
            if rate is None:
                reasons.append(
                    f"{name}, batches of {batch}: no rate made the loss fall"
                )
                continue
            _, found = _fit(job, name, rate, batch, 1)
            if math.isfinite(found.loss):
                tried.append(found)
    if not tried:
        raise ConfigError(
            f"No optimizer made the loss of {job.model.name!r} fall. Check labels and "
            "loss=, or train it yourself with a rate below 1e-6."
        )
    tried.sort(key=lambda one: (-(one.accuracy or 0.0), one.loss))
    told = [f"{tried[0]}: the best of {len(tried)} short trainings"]
    if len(tried) > 1:
        told.append(f"next came {tried[1]}")
    return tried, [*told, *reasons]


def _range_test(job: Job, name: str, batch: int) -> float | None:
    """The rate at which the loss falls fastest; None if it does not fall."""
    keras.utils.set_random_seed(job.seed)
    model = copy_model(job.model)
    model.compile(OPTIMIZERS[name](1e-3), job.loss)
    x, y = job.train
    test = LearningRateFinder(steps=_TESTED).find(model, x, y, batch_size=batch)
    return test.suggestion


def _fit(
    job: Job, name: str, rate: float, batch: int, epochs: int
) -> tuple[keras.Model, Training]:
    begin = time.perf_counter()
    keras.utils.set_random_seed(job.seed)
    model = copy_model(job.model)
    x, y = job.train
    steps = epochs * math.ceil(len(keras.tree.flatten(y)[0]) / batch)
    warm = max(1, round(_WARM * steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(steps - warm, 1), warmup_target=rate, warmup_steps=warm
    )
    model.compile(OPTIMIZERS[name](schedule), job.loss)
    job.progress.stage(f"{name}, batches of {batch}", steps)
    quiet = isinstance(job.progress, Silent)
    watched = [] if quiet else [Recorder(job.progress)]
    model.fit(x, y, batch_size=batch, epochs=epochs, callbacks=watched, verbose=0)
    try:
        accuracy, loss = job.judged(model)
    except DataError:  # outputs that are not finite
        accuracy, loss = None, math.inf
    seconds = time.perf_counter() - begin
    return model, Training(name, rate, batch, epochs, accuracy, loss, seconds)
