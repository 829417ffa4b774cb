"""Observers: which range of values a grid should span.

An observer is a small frozen value, so it can be an argument of a transform and part of
a recipe. Wherever one is asked for, its name does as well: `"min_max"`,
`"moving_average"`, `"peak_hold"`, `"percentile"`, `"mse"` or `"kl"`.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.config import Value, frozen
from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.quantize.batch import batch_range, replica_values
from keras_dlopt.transforms.quantize.grids import IntegerGrid, QuantizationGrid

Ends = tuple[Any, Any]

_A_BIN = 64  # values that a bin of a histogram needs to say anything


class Observer(Value):
    """Chooses a range (low, high) that contains 0 from values, or from a histogram.

    Attributes:
        host: whether the range is found in NumPy between steps, instead of in the
            graph at every step.
        grids: the kinds of grid that it is defined on.
    """

    host: bool = True
    grids: tuple[type[QuantizationGrid], ...] = (QuantizationGrid,)

    def find(
        self, values: np.ndarray, counts: np.ndarray | None, grid: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ranges of several sets of values.

        Args:
            values: (sets, n) numbers, or centers of bins in rising order.
            counts: how often each of them occurred, like `values`; None for once.
            grid: the grid that will span the range.

        Returns:
            Low and high ends, (sets,) each, with low <= 0 <= high.
        """
        raise TypeError(f"{type(self).__name__} does not define find().")

    def of_batch(self, x: Any, grid: Any) -> tuple[Any, Any]:
        """The range of the global batch's activations, in the graph."""
        return batch_range(x)

    def moved(self, old: Ends, new: Ends, keep: Any) -> Ends:
        """The range after a batch, in the graph.

        Args:
            old: low and high end before.
            new: those of the batch.
            keep: weight of the old ones; 0 where there are none yet.
        """
        low, high = (keep * a + (1 - keep) * b for a, b in zip(old, new, strict=True))
        return low, high


def _ends(values: np.ndarray, counts: np.ndarray | None):
    outside = values if counts is None else np.where(counts > 0, values, 0.0)
    return outside.min(axis=1, initial=0.0), outside.max(axis=1, initial=0.0)


@keras.saving.register_keras_serializable("keras_dlopt")
class MinMax(Observer):
    """From the smallest to the largest value ever seen: nothing is clipped.

    Example:
        >>> MinMax().find(np.array([[-1.0, 3.0]]), None, IntegerGrid(8))
        (array([-1.]), array([3.]))
    """

    host = False

    def find(self, values, counts, grid):
        return _ends(values, counts)

    def moved(self, old, new, keep):
        return ops.minimum(old[0], new[0]), ops.maximum(old[1], new[1])


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class MovingAverage(Observer):
    """A moving average of each batch's smallest and largest value.

    Args:
        momentum: weight of the old range, in [0, 1).

    Source: Jacob et al. (arXiv:1712.05877), section 3.1.
    """

    momentum: float = 0.95
    host = False

    def __post_init__(self):
        self.keep(momentum=checks.decay(self.momentum, name="momentum"))

    def find(self, values, counts, grid):
        return _ends(values, counts)


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class PeakHold(MovingAverage):
    """Widens at once to each batch's ends, and narrows as a moving average does.

        high <- max(max(x), momentum * high + (1 - momentum) * max(x))

    and low alike: no batch is clipped in its own step, as an average of batches' ends
    clips the larger ones, and an outlier is forgotten, as the widest range ever is not.
    Calibration holds all of its data.

    Args:
        momentum: weight of the old range, in [0, 1); a peak that is d above the rest is
            momentum^n d above it n batches later.
    """

    momentum: float = 0.99

    def moved(self, old, new, keep):
        low, high = super().moved(old, new, keep)
        return ops.minimum(low, new[0]), ops.maximum(high, new[1])


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class Percentile(Observer):
    """Leaves out the rarest values at both ends.

    Args:
        percentile: share of the values that stay inside each end, in percent, in
            (50, 100].

    Source: Li et al., "Fully Quantized Network for Object Detection" (CVPR 2019),
    section 3.2; Wu et al. (arXiv:2004.09602), section 3.2.
    """

    percentile: float = 99.99

    def __post_init__(self):
        share, hint = self.percentile, "Such as 99.99."
        share = checks.number(share, name="percentile", above=50, most=100, hint=hint)
        self.keep(percentile=share)

    def find(self, values, counts, grid):
        share = self.percentile / 100
        if counts is None:
            low, high = np.quantile(values, [1 - share, share], axis=1)
        else:
            inside = np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True)
            rows = np.arange(len(values))
            high = values[rows, (inside >= share - 1e-12).argmax(axis=1)]
            low = values[rows, (inside > 1 - share + 1e-12).argmax(axis=1)]
        return np.minimum(low, 0.0), np.maximum(high, 0.0)

    def of_batch(self, x, grid):
        share = self.percentile / 100
        ends = ops.quantile(replica_values(x), ops.array([1 - share, share]))
        return ends[0], ends[1]


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class MSE(Observer):
    """The range with the smallest mean squared error of what is rounded to it.

    Tries the widest range times k / steps for k from steps / 5 to steps.

    Args:
        steps: how fine the search is, at least 5.

    Source: Choukroun et al., "Low-bit Quantization of Neural Networks for Efficient
    Inference" (arXiv:1902.06822), section 3.1; searched, not solved.
    """

    steps: int = 100

    def __post_init__(self):
        self.keep(steps=checks.whole(self.steps, name="steps", least=5))

    def find(self, values, counts, grid):
        low, high = _ends(values, counts)
        best = np.full(len(values), np.inf)
        chosen = np.ones(len(values))
        for share in self.shares():
            got = grid.rounded(values, share * low[:, None], share * high[:, None])
            error = np.square(got - values)
            error = (error if counts is None else error * counts).sum(axis=1)
            better = error < best
            best, chosen = (
                np.where(better, error, best),
                np.where(better, share, chosen),
            )
        return chosen * low, chosen * high

    def of_batch(self, x, grid):
        x = replica_values(x)
        low, high = ops.minimum(ops.min(x), 0.0), ops.maximum(ops.max(x), 0.0)
        # Each is a pass over the batch in every step: fewer than in NumPy.
        shares = np.linspace(1.0, 0.2, 20).astype("float32")
        errors = []
        for share in shares:
            numbers = grid.fit(share * low, share * high, ops)
            got = grid.values(grid.place(x, numbers, ops)[0], numbers, ops)
            errors.append(ops.mean(ops.square(got - x)))
        best = ops.take(ops.convert_to_tensor(shares), ops.argmin(ops.stack(errors)))
        return best * low, best * high

    def shares(self) -> np.ndarray:
        """The fractions of the widest range that are tried, the widest first."""
        return np.arange(self.steps, self.steps // 5 - 1, -1) / self.steps


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class KL(Observer):
    """The range whose grid loses the least information about the distribution.

    For every clipping threshold t of a histogram: P is the histogram with what lies
    beyond t put into the last bin, Q is P summed into the grid's levels and spread
    evenly over the bins that are not empty. Takes the t with the smallest
    KL(P || Q) = sum P log(P / Q).

    Args:
        bins: of the histogram of magnitudes, at least 128.

    Source: Migacz, "8-bit Inference with TensorRT" (GTC 2017).
    Differs from it: Q is smoothed by 1e-9, and thresholds are tried in steps of
    bins / 128. The histogram has at least 64 values a bin, since the noise of thinner
    ones looks like information; with too few values nothing is clipped.
    """

    bins: int = 2048
    grids = (IntegerGrid,)

    def __post_init__(self):
        self.keep(bins=checks.whole(self.bins, name="bins", least=128))

    def find(self, values, counts, grid):
        low, high = _ends(values, counts)
        shares = np.array(
            [
                self._share(v, None if counts is None else counts[i], grid)
                for i, v in enumerate(values)
            ]
        )
        largest = np.maximum(-low, high) * shares
        return np.maximum(low, -largest), np.minimum(high, largest)

    def _share(self, values, counts, grid) -> float:
        """The best threshold as a fraction of the largest magnitude."""
        magnitudes = np.abs(values)
        # One-sided values have all levels, two-sided ones half on each side.
        two_sided = values.min() < 0 < values.max()
        levels = 2 ** (grid.bits - int(two_sided or grid.symmetric))
        if not magnitudes.any() or levels < 2:
            return 1.0
        # Exact zeros are on every grid and would hide the rest.
        used = magnitudes > 0
        weights = None if counts is None else counts[used]
        count = used.sum() if weights is None else weights.sum()
        bins = int(min(self.bins, count // _A_BIN))
        if counts is not None:
            # Bins finer than those that were counted would be empty in between.
            bins = min(bins, int(magnitudes.max() / (values[-1] - values[-2])))
        if bins <= levels:
            return 1.0
        histogram, _ = np.histogram(
            magnitudes[used], bins, (0, magnitudes.max()), weights=weights
        )
        tried = range(bins, max(levels, bins // 16) - 1, -max(bins // 128, 1))
        return min(tried, key=lambda n: _divergence(histogram, n, levels)) / bins


def _divergence(histogram: np.ndarray, n: int, levels: int) -> float:
    """KL divergence of the first n bins from their quantized form."""
    part = histogram[:n].astype("float64")
    clipped = part.copy()
    clipped[-1] += histogram[n:].sum()
    total = clipped.sum()
    if not total:
        return np.inf
    level = np.arange(n) * levels // n
    filled = part > 0
    sums = np.bincount(level, part, minlength=levels)
    sizes = np.bincount(level, filled, minlength=levels)
    spread = np.where(filled, (sums / np.maximum(sizes, 1))[level], 0.0)
    p, q = clipped / total, spread / max(spread.sum(), 1e-300)
    here = p > 0
    return float(np.sum(p[here] * np.log(p[here] / (q[here] + 1e-9))))


_NAMES: dict[str, type[Observer]] = {
    "min_max": MinMax,
    "moving_average": MovingAverage,
    "peak_hold": PeakHold,
    "percentile": Percentile,
    "mse": MSE,
    "kl": KL,
}


def observer_of(given: Any) -> Observer:
    """The observer itself, or the one of that name.

    Raises:
        ConfigError: for anything else.

    Example:
        >>> observer_of("percentile")
        Percentile()
    """
    if isinstance(given, Observer):
        return given
    if isinstance(given, str) and given in _NAMES:
        return _NAMES[given]()
    raise ConfigError(
        f"An observer is one of {sorted(_NAMES)}, or an object such as "
        f"Percentile(99.9). Received: {given!r}."
    )
