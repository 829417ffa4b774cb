"""Starts: the range at which a quantizer's numbers begin.

A start is a small frozen value. A weight is measured when the model is transformed, an
activation over the batches before the quantizer begins to round.
"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.config import Value, frozen
from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.quantize.batch import replica_mean
from keras_dlopt.transforms.quantize.grids import (
    IntegerGrid,
    QuantizationGrid,
    TernaryGrid,
)
from keras_dlopt.transforms.quantize.observers import Observer

Measured = dict[str, Any]


class ScaleStart(Value):
    """Where numbers begin, from what was measured.

    Attributes:
        measures: names of what it measures.
        grids: the kinds of grid that it is defined on.
    """

    measures: tuple[str, ...] = ()
    grids: tuple[type[QuantizationGrid], ...] = (IntegerGrid,)

    def of_rows(self, rows: np.ndarray, observer: Observer, grid: Any) -> Measured:
        """What a weight of (scales, elements) measures, one of each a scale."""
        return {}

    def of_batch(self, x: Any, observer: Observer, grid: Any) -> Measured:
        """What the activations of the global batch measure, in the graph."""
        return {}

    def range(self, measured: Measured, grid: Any) -> tuple[Any, Any]:
        """The low and the high end to begin at."""
        raise TypeError(f"{type(self).__name__} does not define range().")


@keras.saving.register_keras_serializable("keras_dlopt")
class FromMagnitude(ScaleStart):
    """A step of 2 mean|x| / sqrt(highest code).

    Source: Esser et al. (arXiv:1902.08153), section 2.1.
    """

    measures = ("magnitude",)

    def of_rows(self, rows, observer, grid):
        return {"magnitude": np.abs(rows).mean(axis=1)}

    def of_batch(self, x, observer, grid):
        magnitude = ops.mean(ops.abs(ops.stop_gradient(x)))
        return {"magnitude": replica_mean(magnitude)}

    def range(self, measured, grid):
        lowest, highest = grid.limits
        step = 2 * np.asarray(measured["magnitude"], "float64") / math.sqrt(highest)
        return step * lowest, step * highest


@keras.saving.register_keras_serializable("keras_dlopt")
class FromRange(ScaleStart):
    """The observer's range: with `MSE()` that of the smallest error."""

    measures = ("low", "high")
    grids = (IntegerGrid, TernaryGrid)

    def of_rows(self, rows, observer, grid):
        return dict(zip(self.measures, observer.find(rows, None, grid), strict=True))

    def of_batch(self, x, observer, grid):
        low, high = observer.of_batch(x, grid)
        return {"low": ops.minimum(low, 0.0), "high": high}

    def range(self, measured, grid):
        low, high = (np.asarray(measured[name], "float64") for name in self.measures)
        return low, high


@keras.saving.register_keras_serializable("keras_dlopt")
class FromMeans(ScaleStart):
    """The means of the weights above and below a ternary grid's zeros."""

    measures = ("below", "above")
    grids = (TernaryGrid,)

    def of_rows(self, rows, observer, grid):
        limit, means = grid.limit(rows, (1,)), {}
        for name, sign in (("below", -1), ("above", 1)):
            used = sign * rows > limit
            total = (rows * used).sum(axis=1, dtype="float64")
            count = used.sum(axis=1)
            means[name] = np.where(count, total / np.maximum(count, 1), sign)
        return means

    def range(self, measured, grid):
        return measured["below"], measured["above"]


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class GivenRange(ScaleStart):
    """A range that is known.

    Args:
        low: at most 0.
        high: at least 0.
        hold: whether it stays, whatever the data; else it is trained or averaged from
            there, like that of an older batch.

    Raises:
        ConfigError: for a range that is empty or does not contain 0.
    """

    low: float
    high: float
    hold: bool = False
    grids = (QuantizationGrid,)

    def __post_init__(self):
        check_range("The start", (self.low, self.high))

    def range(self, measured, grid):
        return self.low, self.high


def check_range(name: str, given: Any) -> tuple[float, float] | None:
    """Returns None, or (low, high) with low <= 0 <= high, or raises `ConfigError`."""
    if given is None:
        return None
    if not given[0] <= 0 <= given[1] != given[0]:
        raise ConfigError(
            f"{name} must be (low, high) with low <= 0 <= high and low < high, since "
            f"0 must be one of the levels. Received: {given!r}."
        )
    return float(given[0]), float(given[1])
