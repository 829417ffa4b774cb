"""The examples of a comparison: arrays or batches in, predictions and labels out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError, DataError

KEPT = 2000  # inputs of batches that are kept to be looked at
Metric = Callable[[np.ndarray, np.ndarray], Any]
_WANTED = (
    "data must be (x, y), inputs and labels, or batches of them, such as a "
    "tf.data.Dataset"
)


@dataclasses.dataclass(frozen=True)
class Examples:
    """What was predicted, from one pass over the data.

    Attributes:
        outputs: of each model.
        labels: one or more an example.
        inputs: of the examples; of batches, those of the first 2,000 or so.
    """

    outputs: tuple[np.ndarray, ...]
    labels: np.ndarray
    inputs: Any

    def images(self) -> np.ndarray | None:
        """The inputs if they are images, (n, height, width, 1 or 3), or None."""
        x = self.inputs
        if isinstance(x, dict | list | tuple):
            parts = keras.tree.flatten(x)
            x = parts[0] if len(parts) == 1 else None
        x = None if x is None else np.asarray(x)
        if x is None or x.ndim != 4 or x.shape[-1] not in (1, 3):
            return None
        return x if x.dtype.kind in "biuf" and min(x.shape[1:3]) > 1 else None


def predicted(
    models: Sequence[keras.Model], data: Any, *, batch_size: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """What each model predicts, and the labels; see `examples_of`."""
    found = examples_of(models, data, batch_size=batch_size)
    return list(found.outputs), found.labels


def examples_of(
    models: Sequence[keras.Model], data: Any, *, batch_size: int
) -> Examples:
    """What each model predicts, and the labels, from one pass over the data.

    Args:
        models: that take the same inputs.
        data: `(x, y)`, or an iterable of such batches.
        batch_size: examples predicted at a time, for arrays.

    Raises:
        DataError: for data of another form, endless data, or models with several
            outputs.
    """
    if isinstance(data, tuple | list):
        x, y = _pair(data)
        rows = [m.predict(x, batch_size=batch_size, verbose=0) for m in models]
        return Examples(tuple(map(_one_output, rows)), np.asarray(y), x)
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise DataError(f"{_WANTED}. Received: {type(data).__name__}.")
    if _is_endless(data):
        raise DataError("The data has no end. Give a part of it, with data.take(n).")
    found: list[list[np.ndarray]] = [[] for _ in models]
    labels: list[np.ndarray] = []
    inputs: list[Any] = []
    # Once for all models: a data set that is shuffled gives another order each time.
    for batch in _batches(data):
        x, y = _pair(batch)
        y = np.asarray(y)
        if not y.ndim:
            raise DataError("The data gives single examples. Call data.batch(n).")
        if sum(map(len, labels)) < KEPT:
            inputs.append(keras.tree.map_structure(np.asarray, x))
        labels.append(y)
        for model, rows in zip(models, found, strict=True):
            rows.append(_one_output(model.predict_on_batch(x)))
    if not labels:
        raise DataError("The data is empty: there is nothing to compare.")
    return Examples(
        outputs=tuple(np.concatenate(rows) for rows in found),
        labels=np.concatenate(labels),
        inputs=keras.tree.map_structure(lambda *parts: np.concatenate(parts), *inputs),
    )


def _batches(data: Any) -> Any:
    if isinstance(data, keras.utils.PyDataset):
        return (data[i] for i in range(len(data)))
    return data


def _is_endless(data: Any) -> bool:
    count = data.cardinality() if hasattr(data, "cardinality") else None
    return count is not None and int(count) == -1


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        form = type(batch).__name__
        if isinstance(batch, tuple | list):
            form = f"{form} of {len(batch)}"
        raise DataError(
            f"{_WANTED}. Received: {form}. Every example counts alike: leave out "
            "sample weights."
        )
    return batch[0], batch[1]


def _one_output(rows: Any) -> np.ndarray:
    if isinstance(rows, list | tuple | dict):
        raise DataError(
            f"The model has {len(rows)} outputs. Compare models of one: "
            "keras.Model(model.inputs, model.outputs[0])."
        )
    return np.asarray(rows)


def numbered(y: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Labels that are words as numbers, in the order of the names; others as given.

    Raises:
        DataError: for words without names, or words that are none of them.

    Example:
        >>> numbered(np.array(["dog", "cat"]), ("cat", "dog")).tolist()
        [1, 0]
    """
    y = np.asarray(y)
    if y.dtype.kind not in "USO" or not y.size:
        return y
    words = [w.decode() if isinstance(w, bytes) else w for w in y.ravel().tolist()]
    if not all(isinstance(word, str) for word in words):
        return y
    known = {name: number for number, name in enumerate(class_names)}
    unknown = sorted({word for word in words if word not in known})
    if unknown:
        raise DataError(
            f"Labels are words, such as {unknown[0]!r}, and which output each means "
            "is not known. Give class_names=(...), a name per output in the order of "
            f"the outputs. Received: class_names={tuple(class_names)!r}."
        )
    return np.asarray([known[word] for word in words]).reshape(y.shape)


def measured(
    metrics: Mapping[str, Metric | keras.metrics.Metric],
    outputs: np.ndarray,
    y: np.ndarray,
) -> dict[str, float]:
    """The user's own measures of one model's outputs.

    Raises:
        ConfigError: for one that does not give a number.
    """
    found = {}
    for name, metric in metrics.items():
        if isinstance(metric, keras.metrics.Metric):
            metric.reset_state()
            metric.update_state(y, outputs)
            value = keras.ops.convert_to_numpy(metric.result())
            metric.reset_state()
        elif callable(metric):
            value = np.asarray(metric(y, outputs))
        else:
            value = np.zeros(2)
        if value.size != 1 or value.dtype.kind not in "biuf":
            raise ConfigError(
                f"metrics[{name!r}] must be a keras.metrics.Metric, or a function of "
                f"(labels, outputs) that returns one number. Received: {metric!r}."
            )
        found[name] = float(value.reshape(()))
    return found
