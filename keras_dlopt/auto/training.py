"""Data, loss and figures for training a model on, found from what is given."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.data import Dataset
from keras_dlopt.distill import LogitsDistillation, distill
from keras_dlopt.errors import ConfigError, DataError
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.optimizers import AdamW
from keras_dlopt.report import Progress, Recorder, quality
from keras_dlopt.report.examples import predicted

LEAST_STEPS, LEAST_EPOCHS = 1500, 10
_DECAY = 0.01  # of AdamW


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """How a model is trained on, and judged.

    Attributes:
        model: the trained parent.
        train: `(x, y)` or batches of them.
        val: the same, to judge on.
        loss: that is trained and, for models that do not classify, judged.
        classifies: whether the labels are classes and the outputs one row of them.
        batch_size: for arrays.
        epochs: of one training.
        steps: of one epoch.
        rate: at the start; it falls to 0 by a cosine.
        teacher: whether the parent teaches.
        seed: Keras' global one, of shuffling and noise.
        progress: is told of every step.
    """

    model: keras.Model
    train: Any
    val: Any
    loss: Any
    classifies: bool
    batch_size: int
    epochs: int
    steps: int
    rate: float
    teacher: bool
    seed: int
    progress: Progress

    @property
    def total(self) -> int:
        """Steps of one training."""
        return self.epochs * self.steps

    def fit(self, model: keras.Model, name: str, *, rate: float | None = None) -> Any:
        """Trains a model, which the parent may teach; returns what was trained."""
        keras.utils.set_random_seed(self.seed)
        if self.teacher:
            # The teacher is frozen, the given model not.
            teacher = copy_model(self.model)
            model = distill(model, teacher, LogitsDistillation(), copy=False)
        falling = keras.optimizers.schedules.CosineDecay(rate or self.rate, self.total)
        model.compile(AdamW(falling, weight_decay=_DECAY), self.loss)
        self.progress.stage(name, self.total)
        arrays = isinstance(self.train, tuple | list)
        options = {"batch_size": self.batch_size} if arrays else {"shuffle": False}
        given = self.train if arrays else (self.train,)
        watched = [Recorder(self.progress)]
        model.fit(*given, epochs=self.epochs, callbacks=watched, verbose=0, **options)
        return model

    def judged(self, model: Any) -> tuple[float | None, float]:
        """Accuracy, if there is such a thing, and loss on the validation examples."""
        (rows,), y = predicted([model], self.val, batch_size=self.batch_size)
        loss = keras.losses.get(self.loss)
        found = float(np.mean(keras.ops.convert_to_numpy(loss(y, rows))))
        return (quality(rows, y).accuracy if self.classifies else None), found


def job_for(
    model: keras.Model,
    train: Any,
    val: Any,
    *,
    loss: Any,
    batch_size: int,
    epochs: int | None,
    rate: float,
    teacher: bool | None,
    seed: int,
    progress: Progress,
) -> Job:
    """The job, with what was left out found from the model and the data.

    Raises:
        DataError: for data without labels, without an end, or too few to hold some out.
        ConfigError: if no loss is known.
    """
    train, val = _parts(train, val)
    batch_size = checks.count(batch_size, name="batch_size")
    steps = _steps(train, batch_size)
    if epochs is None:
        epochs = max(LEAST_EPOCHS, math.ceil(LEAST_STEPS / steps))
    loss, classifies = known_loss(model, val, loss, batch_size=batch_size)
    return Job(
        model,
        train,
        val,
        loss,
        classifies,
        batch_size,
        checks.count(epochs, name="epochs"),
        steps,
        checks.positive(rate, name="rate"),
        classifies if teacher is None else teacher,
        seed,
        progress,
    )


def known_loss(
    model: keras.Model, val: Any, loss: Any, *, batch_size: int = 256
) -> tuple[Any, bool]:
    """The loss given, compiled, or meant by labels of classes; whether they are such.

    Raises:
        ConfigError: if there is none.
    """
    (rows,), y = predicted([model], val, batch_size=batch_size)
    whole = y.dtype.kind in "iub" and rows.ndim == 2 and rows.shape[1] > 1
    classifies = whole and y.ndim == 1
    if loss is None:
        loss = getattr(model, "loss", None)
    if loss is None and classifies:
        sums = np.allclose(rows.sum(axis=1), 1, atol=1e-3) and rows.min() >= 0
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not sums)
    if loss is None or isinstance(loss, dict | list):
        raise ConfigError(
            f"What {model.name!r} is trained for is not known: it is not compiled, and "
            "its labels are no classes. Pass loss=, such as loss='mse'. Received: "
            f"labels of shape {y.shape} for outputs of shape {rows.shape}."
        )
    return loss, classifies


def _parts(train: Any, val: Any) -> tuple[Any, Any]:
    """Training and validation examples; the last tenth is held out of arrays."""
    if isinstance(train, Dataset):
        return train.train, train.val if val is None else val
    if val is not None:
        return train, val
    if not isinstance(train, tuple | list) or len(train) != 2:
        raise DataError(
            "Without val, train must be arrays (x, y), of which the last tenth is held "
            f"out to judge on. Received: {type(train).__name__}. Pass val=."
        )
    x, y = (np.asarray(part) for part in train)
    held = len(y) // 10
    if not held or len(x) != len(y):
        raise DataError(
            "A tenth of train is held out to judge on, so that it must have 10 "
            f"examples or more, and as many labels. Received: {len(x)} examples and "
            f"{len(y)} labels."
        )
    return (x[:-held], y[:-held]), (x[-held:], y[-held:])


def _steps(train: Any, batch_size: int) -> int:
    if isinstance(train, tuple | list):
        return math.ceil(len(train[1]) / batch_size)
    count = train.cardinality() if hasattr(train, "cardinality") else None
    try:
        steps = len(train) if count is None else int(count)
    except TypeError:
        steps = -2
    if steps < 1:
        raise DataError(
            "The number of batches in train is not known, and schedules need it. Pass "
            "arrays, or train.apply(tf.data.experimental.assert_cardinality(n))."
        )
    return steps
