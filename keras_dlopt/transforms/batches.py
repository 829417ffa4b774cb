"""Some batches of the training data, the same ones whenever a step is repeated."""

import itertools
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError

Batch = tuple[Any, Any, Any]


class DrawnBatches:
    """Draws batches from what `fit` accepts, if that can be read more than once.

    Arrays: examples drawn without replacement by a generator seeded with the step.
    `keras.utils.PyDataset`: batches drawn in the same way. `tf.data.Dataset` and other
    iterables: the first batches of one iteration, read when first needed and kept.

    Args:
        data: arrays, a tuple `(x, y)` or `(x, y, sample_weight)` of them (each may be a
            dict or list), or a data set that yields batches of such tuples.
        count: how many batches.
        batch_size: examples a batch, for arrays.
        seed: of the draws.

    Raises:
        ConfigError: for an iterator, which could be read only once, or no data.
    """

    def __init__(self, data: Any, *, count: int, batch_size: int, seed: int = 0):
        if hasattr(data, "__next__"):
            raise ConfigError(
                "The data are a generator, which can be read only once, and the "
                "transforms need gradients on some of them between steps. Hand "
                "re-readable data to fit (arrays, tf.data, PyDataset), or a sample: "
                "callbacks=[UpdateTransforms(data=(x, y))]."
            )
        self.data, self.count = data, checks.count(count, name="batches")
        self.batch_size = checks.count(batch_size, name="batch_size")
        self.seed = checks.seed(seed)
        self._first: list[Batch] | None = None

    def at(self, step: int) -> list[Batch]:
        """The batches for one step, as `(x, y, sample_weight)`."""
        rng = np.random.default_rng([self.seed, step])
        if isinstance(self.data, keras.utils.PyDataset):
            number = self.data.num_batches or 0
            chosen = rng.choice(number, min(self.count, number), replace=False)
            batches = [self.data[int(i)] for i in np.sort(chosen)]
        elif _is_arrays(self.data):
            batches = self._drawn(rng)
        else:
            if self._first is None:
                self._first = [
                    keras.tree.map_structure(_array, batch)
                    for batch in itertools.islice(self.data, self.count)
                ]
            batches = self._first
        if not batches:
            raise ConfigError(
                "The data for the transforms' gradients are empty. "
                f"Received: {self.data!r}."
            )
        return [_unpacked(batch) for batch in batches]

    def _drawn(self, rng) -> list[Any]:
        length = len(keras.tree.flatten(self.data)[0])
        size = max(min(self.batch_size, length), 1)
        chosen = rng.permutation(length)[: size * self.count]
        chosen = chosen[: len(chosen) // size * size]
        return [
            keras.tree.map_structure(lambda a, rows=rows: _array(a)[rows], self.data)
            for rows in chosen.reshape(-1, size)
        ]


def _unpacked(batch) -> Batch:
    return keras.utils.unpack_x_y_sample_weight(
        tuple(batch) if isinstance(batch, list) else batch
    )


def _is_arrays(data) -> bool:
    leaves = keras.tree.flatten(data)
    return bool(leaves) and all(hasattr(leaf, "shape") for leaf in leaves)


def _array(leaf) -> np.ndarray:
    return np.asarray(leaf)


def fit_data(x: Any, y: Any, sample_weight: Any, validation_split: float) -> Any:
    """The part of `fit`'s data that is trained on, for `DrawnBatches`."""
    if not _is_arrays(x):
        return x
    parts = tuple(part for part in (x, y, sample_weight) if part is not None)
    if validation_split:
        length = len(keras.tree.flatten(x)[0])
        cut = int(length * (1.0 - validation_split))
        parts = keras.tree.map_structure(lambda a: a[:cut], parts)
    return parts
