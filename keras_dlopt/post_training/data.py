"""Calibration data: arrays, structures of arrays or batches, checked before use."""

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import DataError


class Batches:
    """Batches of a model's inputs, read once and kept in memory.

    Args:
        model: the model that will take them.
        data: an array, a structure of arrays like the model's inputs, or an iterable of
            batches such as a `tf.data.Dataset`; of a batch `(x, y)` only x is used.
            Another `Batches` is taken as it is, so that a generator is read once.
        batch_size: for arrays.
        limit: at most so many examples are kept, of arrays drawn ones, since those may
            be in order; None for all.

    Raises:
        DataError: for data that is empty, of another shape than the model's inputs, or
            not finite.
    """

    def __init__(
        self, model: Any, data: Any, *, batch_size: int = 64, limit: int | None = None
    ):
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1. Received: {batch_size!r}.")
        self.batches: list[Any] = []
        self.examples = 0
        inputs = len(keras.tree.flatten(getattr(model, "inputs", None) or []))
        if limit is None:
            _check_ends(data)
        read = iter(data) if isinstance(data, Batches) else None
        for batch in read or _batches(data, batch_size, inputs, limit):
            if limit is not None and self.examples >= limit:
                break
            batch = keras.tree.map_structure(np.asarray, batch)
            _check(model, batch)
            self.examples += len(keras.tree.flatten(batch)[0])
            self.batches.append(batch)
        if not self.examples:
            raise DataError(
                "The calibration data are empty. Give some hundred examples of what "
                "the model will see, without labels."
            )

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def _check_ends(data: Any) -> None:
    """Raises `DataError` for a data set that says it never ends."""
    cardinality = getattr(data, "cardinality", None)
    # tf.data.INFINITE_CARDINALITY, without importing TensorFlow
    if callable(cardinality) and int(cardinality()) == -1:
        raise DataError(
            "The calibration data never end. Take some batches of them, such as "
            "dataset.take(8)."
        )


def _is_whole(data: Any, inputs: int) -> bool:
    """Whether the data are arrays like the model's inputs, not batches of them."""
    if hasattr(data, "shape"):
        return True
    if isinstance(data, dict):
        return all(hasattr(a, "shape") for a in data.values())
    if not isinstance(data, list | tuple) or len(data) != (inputs or len(data)):
        return False
    return bool(data) and all(hasattr(a, "shape") for a in data)


def _batches(
    data: Any, batch_size: int, inputs: int, limit: int | None
) -> Iterator[Any]:
    if _is_whole(data, inputs):
        arrays = keras.tree.map_structure(np.asarray, data)
        sizes = {len(a) if a.ndim else 0 for a in keras.tree.flatten(arrays)}
        if len(sizes) > 1:
            raise DataError(
                f"The arrays of the calibration data differ in length: {sorted(sizes)}."
            )
        size = sizes.pop() if sizes else 0
        if limit is not None and limit < size:
            chosen = np.random.default_rng(0).choice(size, limit, replace=False)
            arrays = keras.tree.map_structure(lambda a: a[np.sort(chosen)], arrays)
            size = limit
        for start in range(0, size, batch_size):
            yield keras.tree.map_structure(
                lambda a, i=start: a[i : i + batch_size], arrays
            )
    elif isinstance(data, Iterable):
        for batch in data:
            # (x, y) and (x, y, weight), as fit takes them
            yield batch[0] if isinstance(batch, tuple) and len(batch) > 1 else batch
    else:
        raise DataError(
            "Calibration data are arrays like the model's inputs, or an iterable of "
            f"batches of them. Received: {type(data).__name__}."
        )


def _check(model: Any, batch: Any) -> None:
    arrays = keras.tree.flatten(batch)
    wanted = [tuple(t.shape) for t in keras.tree.flatten(getattr(model, "inputs", []))]
    given = [a.shape for a in arrays]
    fits = len(wanted) == len(given) and all(
        len(w) == len(g)
        and all(n is None or n == m for n, m in zip(w[1:], g[1:], strict=True))
        for w, g in zip(wanted, given, strict=True)
    )
    if wanted and not fits:
        raise DataError(
            f"{model.name!r} takes inputs of the shapes {wanted}, the first number "
            f"being the batch. The calibration data have {given}. Give batches of "
            "inputs, without labels."
        )
    for array in arrays:
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise DataError(
                "The calibration data hold values that are not finite. Remove the "
                "examples with NaN or infinity."
            )


class Outputs:
    """What a model makes of some batches, to be compared with itself later.

    Args:
        model: of which weights are changed in between.
        batches: of its inputs.
    """

    def __init__(self, model: Any, batches: Batches):
        self._model, self._batches = model, batches
        self._wanted = self._made()
        spread = (np.square(w - w.mean(axis=0)).sum() for w in self._wanted)
        self._spread = float(sum(spread)) or 1.0

    def change(self) -> float:
        """Relative squared error: sum |f_now - f|^2 / sum |f - mean f|^2."""
        pairs = zip(self._made(), self._wanted, strict=True)
        return sum(float(np.square(g - w).sum()) for g, w in pairs) / self._spread

    def _made(self) -> list[np.ndarray]:
        predict = self._model.predict_on_batch
        parts = [keras.tree.flatten(predict(batch)) for batch in self._batches]
        return [np.concatenate(p).astype("float64") for p in zip(*parts, strict=True)]
