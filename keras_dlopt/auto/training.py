"""Data, loss and figures for training a model on, found from what is given."""

import dataclasses
import functools
import math
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.auto.goals import CLUSTERED
from keras_dlopt.data import Dataset
from keras_dlopt.distill import (
    LogitsDistillation,
    OutputDistillation,
    distill,
    taught,
    teacher_outputs,
)
from keras_dlopt.errors import ConfigError, DataError
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.graph.walk import layers_below
from keras_dlopt.optimizers import AdamW
from keras_dlopt.post_training import recalibrate_batch_normalization
from keras_dlopt.report import Progress, Recorder, Silent, quality
from keras_dlopt.report.examples import predicted
from keras_dlopt.report.quality import changes
from keras_dlopt.transforms.host import hosts

LEAST_STEPS, LEAST_EPOCHS = 1500, 10
_DECAY = 0.01  # of AdamW
# Moving averages are settled after so many of their windows; else so many examples
# measure them.
_WINDOWS, _EXAMPLES = 3, 2048


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """How a model is trained on, and judged.

    Attributes:
        model: the trained parent.
        train: `(x, y)` or batches of them.
        val: the same, to judge on.
        loss: that is trained and, for models that do not classify, judged.
        classifies: whether `report.quality` can judge the outputs by the labels.
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
        arrays = isinstance(self.train, tuple | list)
        given: Any = self.train if arrays else (self.train,)
        if self.teacher and self.classifies and self._outputs is not None:
            given = (given[0], taught(given[1], self._outputs))
        keras.utils.set_random_seed(self.seed)
        if self.teacher:
            # The teacher is frozen, the given model not.
            teacher = copy_model(self.model)
            term = LogitsDistillation() if self.classifies else OutputDistillation()
            model = distill(model, teacher, term, copy=False)
        falling = keras.optimizers.schedules.CosineDecay(rate or self.rate, self.total)
        model.compile(AdamW(falling, weight_decay=_DECAY), self.loss)
        self.progress.stage(name, self.total)
        options = {"batch_size": self.batch_size} if arrays else {"shuffle": False}
        quiet = isinstance(self.progress, Silent)
        watched = [] if quiet else [Recorder(self.progress)]
        model.fit(*given, epochs=self.epochs, callbacks=watched, verbose=0, **options)
        if hosts(model):
            self._settle(model)
        return model

    def _settle(self, model: keras.Model) -> None:
        """Measures statistics anew that have seen few steps of the last weights.

        Values are shared, and zeros are all there, only towards the end; moving
        averages that look back further belong to other weights.
        """
        norms = layers_below(model.model, keras.layers.BatchNormalization)
        slowest = max((one.momentum for one in norms), default=0.0)
        if self.total * (1 - CLUSTERED) * (1 - slowest) < _WINDOWS and slowest:
            x = drawn_inputs(self.train, _EXAMPLES, seed=self.seed)
            recalibrate_batch_normalization(model, x, batch_size=self.batch_size)

    @functools.cached_property
    def _outputs(self) -> np.ndarray | None:
        """The teacher's, which then runs once and not in each step.

        None for batches, whose order is not known, and for outputs that would take more
        memory than the examples.
        """
        if not isinstance(self.train, tuple | list) or len(self.train) != 2:
            return None
        x = self.train[0]
        if not isinstance(x, np.ndarray):
            return None
        if teacher_outputs(self.model, x[:1]).nbytes > x[:1].nbytes:
            return None
        return teacher_outputs(self.model, x, batch_size=self.batch_size)

    def judged(self, model: Any) -> tuple[float | None, float]:
        """Accuracy, if there is such a thing, and loss on the validation examples."""
        (rows,), y = predicted([model], self.val, batch_size=self.batch_size)
        loss = keras.losses.get(self.loss)
        found = float(np.mean(keras.ops.convert_to_numpy(loss(*_alike(y, rows)))))
        if not self.classifies:
            return None, found
        return quality(rows, y, from_logits=self.from_logits).accuracy, found

    def lost(self, model: Any) -> tuple[float, float]:
        """By how much the accuracy fell, and the standard error of that."""
        both = [self.model, model]
        (before, after), y = predicted(both, self.val, batch_size=self.batch_size)
        found = changes(before, after, y, from_logits=self.from_logits)
        fallen = (found.newly_wrong - found.newly_right) / len(y)
        moved = (found.newly_wrong + found.newly_right) / len(y)
        return fallen, math.sqrt(max(moved - fallen**2, 0.0) / len(y))

    @property
    def from_logits(self) -> bool | None:
        """Whether the loss says that the outputs are logits; None if it does not."""
        return logits_of(self.loss)


def job_for(
    model: keras.Model,
    train: Any,
    val: Any,
    *,
    loss: Any = None,
    batch_size: int = 64,
    epochs: int | None = None,
    rate: float = 1e-3,
    teacher: bool | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Job:
    """The job, with what was left out found from the model and the data.

    Raises:
        DataError: for data without labels, without an end, or too few to hold some out.
        ConfigError: if no loss is known.
    """
    train, val = _parts(train, val, seed)
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
        progress or Silent(),
    )


def known_loss(
    model: keras.Model, val: Any, loss: Any, *, batch_size: int = 256
) -> tuple[Any, bool]:
    """The loss given, compiled, or meant by labels of classes; whether they are such.

    Raises:
        ConfigError: if there is none.
    """
    (rows,), y = predicted([model], val, batch_size=batch_size)
    if loss is None:
        loss = getattr(model, "loss", None)
    classifies = not isinstance(loss, dict | list) and _judges(rows, y, loss)
    if loss is None and classifies:
        loss = _meant(rows, y)
    if loss is None or isinstance(loss, dict | list):
        raise ConfigError(
            f"What {model.name!r} is trained for is not known: it is not compiled, and "
            "its labels are no classes. Pass loss=, such as loss='mse'. A file holds "
            "the loss if the model was compiled before it was saved. Received: "
            f"labels of shape {y.shape} for outputs of shape {rows.shape}."
        )
    return loss, classifies


def logits_of(loss: Any) -> bool | None:
    """True for a loss that takes logits; None for one that does not say so."""
    return True if getattr(loss, "from_logits", False) else None


def _judges(rows: np.ndarray, y: np.ndarray, loss: Any) -> bool:
    """Whether `quality` can judge outputs by labels, and they are meant as classes."""
    if rows.ndim != 2 or y.dtype.kind not in "biuf":
        return False
    one_hot = y.ndim == 2 and y.shape[1] > 1
    if one_hot and y.shape != rows.shape:
        return False
    found = loss if loss is None else keras.losses.get(loss)
    name = str(getattr(found, "name", getattr(found, "__name__", "")))
    if "crossentropy" not in name:
        # Numbers to come near to may be whole: 0, 1 and 2 of one thing or another.
        sure = one_hot or (rows.shape[1] > 1 and y.dtype.kind in "iub")
        if not sure and not (loss is None and y.dtype.kind in "iub"):
            return False
    try:
        quality(np.zeros_like(rows), y)  # of the shapes: outputs can be of any value
    except DataError:
        return False
    return True


def _meant(rows: np.ndarray, y: np.ndarray) -> Any:
    """The cross-entropy that labels of classes mean."""
    inside = bool(rows.min() >= 0 and rows.max() <= 1)
    if rows.shape[1] == 1:
        return keras.losses.BinaryCrossentropy(from_logits=not inside)
    logits = not (inside and np.allclose(rows.sum(axis=1), 1, atol=1e-3))
    if y.ndim == 2 and y.shape[1] > 1:
        return keras.losses.CategoricalCrossentropy(from_logits=logits)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)


def _alike(y: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and outputs as `fit` hands them to a loss: (n,) and (n, 1) do not mix."""
    if y.ndim == 1 and rows.ndim == 2 and rows.shape[1] == 1:
        return y[:, None], rows
    if rows.ndim == 1 and y.ndim == 2 and y.shape[1] == 1:
        return y, rows[:, None]
    return y, rows


def _parts(train: Any, val: Any, seed: int) -> tuple[Any, Any]:
    """Training and validation examples; a tenth, drawn by seed, is held out of arrays.

    The last tenth would be of one class, or one day, in data that are in order.
    """
    if isinstance(train, Dataset):
        return train.train, train.val if val is None else val
    if val is not None:
        return train, val
    if not isinstance(train, tuple | list) or len(train) != 2:
        raise DataError(
            "Without val, train must be arrays (x, y), of which a tenth is held out to "
            f"judge on. Received: {type(train).__name__}. Pass val=."
        )
    x, y = (_arrays(part) for part in train)
    counts = {len(part) for part in keras.tree.flatten((x, y))}
    held = max(counts) // 10
    if not held or len(counts) > 1:
        raise DataError(
            "A tenth of train is held out to judge on, so that it must have 10 "
            "examples or more, and as many labels. Received: "
            f"{len(keras.tree.flatten(x)[0])} examples and "
            f"{len(keras.tree.flatten(y)[0])} labels."
        )
    order = np.random.default_rng(seed).permutation(max(counts))
    kept, out = np.sort(order[held:]), np.sort(order[:held])
    return taken((x, y), kept), taken((x, y), out)


def _arrays(part: Any) -> Any:
    """Arrays; for a model of several inputs a dict or a list of them."""
    several = isinstance(part, list | tuple) and all(hasattr(p, "shape") for p in part)
    if isinstance(part, dict) or several:
        return keras.tree.map_structure(np.asarray, part)
    return np.asarray(part)


def taken(x: Any, which: Any) -> Any:
    """Examples by number or slice, of one array or of each of several."""
    return keras.tree.map_structure(lambda part: part[which], x)


def drawn_inputs(train: Any, count: int, *, seed: int = 0) -> Any:
    """Inputs of some of the examples: drawn, since arrays may be in order."""
    if isinstance(train, tuple | list):
        order = np.random.default_rng(seed).permutation(len(train[1]))[:count]
        return taken(train[0], order)
    found: list[Any] = []
    for batch in train:
        found.append(batch[0])
        count -= len(keras.tree.flatten(batch[0])[0])
        if count <= 0:
            break
    return found


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
