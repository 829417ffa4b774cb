"""Histograms of weights before and after, as numbers."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.transforms.host import hosts

BINS = 60
PANELS = 9


@dataclasses.dataclass(frozen=True)
class WeightHistogram:
    """How one weight is distributed before and after.

    Attributes:
        path: of the weight.
        low: left edge of the first of 60 bins.
        high: right edge of the last.
        before: number of values in each bin.
        after: the same after, exact zeros left out.
        zeros: share of exact zeros after.
    """

    path: str
    low: float
    high: float
    before: tuple[int, ...]
    after: tuple[int, ...]
    zeros: float


def kernels(model: keras.Model) -> dict[str, np.ndarray]:
    """Path -> value of every weight of two or more dimensions.

    Those of a transformed model are the ones that it computes with.
    """
    found = hosts(model)
    states = {id(v) for host in found for v in host.states}
    seen = {id(v): value for host in found for v, value in host.seen_values()}
    return {
        target.path: np.asarray(
            keras.ops.convert_to_numpy(seen.get(id(v), target.variable.value))
        )
        for target in weight_targets(model)
        if len(target.shape or ()) >= 2 and id(v := target.variable) not in states
    }


def sparsity(model: keras.Model) -> float:
    """Share of exact zeros among the weights of two or more dimensions.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.layers[0].kernel.assign([[1, 0], [1, 0], [1, 0], [1, 1]]) is None
        False
        >>> sparsity(model)
        0.375
    """
    found = kernels(model).values()
    zeros = sum(int((value == 0).sum()) for value in found)
    return zeros / max(sum(value.size for value in found), 1)


def histograms(before: Any, after: Any) -> tuple[WeightHistogram, ...]:
    """The largest weights that both models have, in the model's order.

    Args:
        before: a built Keras model.
        after: a model with some of the same weights, by path and shape.
    """
    first, second = kernels(before), kernels(after)
    shared = [
        path
        for path, value in first.items()
        if path in second and second[path].shape == value.shape
    ]
    largest = sorted(shared, key=lambda path: -first[path].size)[:PANELS]
    return tuple(
        _histogram(path, first[path], second[path])
        for path in shared
        if path in largest
    )


def _histogram(path: str, before: np.ndarray, after: np.ndarray) -> WeightHistogram:
    before, after = before.ravel().astype("float64"), after.ravel().astype("float64")
    ends = np.concatenate([before, after])
    low, high = float(ends.min()), float(ends.max())
    if low == high:  # a constant: still a bin of some width
        low, high = low - 0.5, high + 0.5
    kept = after[after != 0]
    return WeightHistogram(
        path=path,
        low=low,
        high=high,
        before=_counts(before, low, high),
        after=_counts(kept, low, high),
        zeros=1 - len(kept) / len(after),
    )


def _counts(values: np.ndarray, low: float, high: float) -> tuple[int, ...]:
    return tuple(np.histogram(values, BINS, (low, high))[0].tolist())
