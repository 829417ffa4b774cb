"""Grids: which levels there are, and the numbers that say where they lie.

A grid is a small frozen value. Its methods take NumPy arrays or tensors: `xp` is
`numpy` or `keras.ops`. Its levels are placed by a tuple of numbers, each of which
broadcasts to what is rounded: `fit` has them from a range, `measured` from the values.
"""

import abc
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.codecs.hints import Codebook, Grid
from keras_dlopt.config import Value, frozen
from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.quantize.layout import ScaleLayout

SMALLEST = 1e-6  # the width of narrower ranges
NOTHING = 1e-12  # a range below this holds nothing but 0
TINY = 1e-30


class QuantizationGrid(Value, abc.ABC):
    """Levels that values are rounded to; by itself from -m to m with m = max|x|.

    Attributes:
        spans: whether a range places the levels, so that an observer may choose it.
    """

    spans: bool = True

    def ends(self, x: Any, axes: tuple[int, ...], xp: Any = np) -> tuple[Any, Any]:
        """The range over `axes` that the grid spans if no observer knows better."""
        largest = xp.max(xp.abs(x), axis=axes, keepdims=True)
        return -largest, largest

    def fit(self, low: Any, high: Any, xp: Any = np) -> tuple[Any, ...]:
        """The numbers that place the levels in ranges with low <= 0 <= high."""
        return (xp.maximum(-low, high),)

    def measured(self, x: Any, axes: tuple[int, ...], xp: Any = np) -> tuple[Any, ...]:
        """The numbers that place the levels for `x`, one of each over `axes`."""
        return self.fit(*self.ends(x, axes, xp), xp)

    @abc.abstractmethod
    def place(
        self,
        x: Any,
        numbers: Any,
        xp: Any = np,
        *,
        clips: bool = True,
        noise: Any = None,
    ) -> tuple[Any, Any]:
        """The codes of `x` as floats; which of `x` the levels reach, None for all."""

    def values(self, codes: Any, numbers: Any, xp: Any = np) -> Any:
        """What the codes stand for."""
        return codes * numbers[0]

    def rounded(self, x: np.ndarray, low: Any, high: Any) -> np.ndarray:
        """`x` rounded to the grid of a range, in NumPy."""
        numbers = self.fit(low, high)
        return self.values(self.place(x, numbers)[0], numbers)

    def described(
        self, codes: np.ndarray, numbers: Any, cut: ScaleLayout
    ) -> tuple[np.ndarray, Any]:
        """The weight that codes stand for, and the hint that says so."""
        codes = codes.astype("int32").reshape(cut.shape)
        scale = cut.broadcast(np.asarray(numbers[0], "float32"))
        return codes * scale, Grid(codes=codes, scale=scale)


def wide(low: Any, high: Any, xp: Any = np) -> Any:
    """The high end of a range that has a width.

    Nothing but 0, or what is left of weights that decayed, is as good as (0, 1): 0 is
    exact there, and what comes later is not lost. Other ranges are 1e-6 wide at least.
    """
    return xp.where(high - low < NOTHING, low + 1.0, xp.maximum(high, low + SMALLEST))


def codebook(weight: np.ndarray, cut: ScaleLayout) -> tuple[np.ndarray, Codebook]:
    """A weight of few values, and the hint that lists them."""
    # -0.0 would be a second zero to the codecs.
    weight = weight.astype("float32") + np.float32(0)
    values, indices = np.unique(weight, return_inverse=True)
    indices = indices.reshape(cut.shape)
    return values[indices], Codebook(indices=indices, values=values)


def check_bits(bits: Any, *, least: int = 2, most: int = 16) -> int:
    """A whole number of that range, or raises `ConfigError`."""
    return checks.whole(
        bits,
        name="bits",
        least=least,
        most=most,
        hint="LiteRT runs 8 bits (weights also 4); fewer make smaller files. Two bits "
        "are Ternary() too, one bit a weight is Binary().",
    )


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class IntegerGrid(QuantizationGrid):
    """The integers of b bits times a scale, counted from the code of 0.

    Symmetric: scale = max(-low / -lowest, high / highest) with the codes
    [-(2^(b-1) - 1), 2^(b-1) - 1], or from -2^(b-1) on if not narrow.
    Asymmetric: scale = (high - low) / levels with the 2^b levels (2^b - 1 if narrow)
    from low to high, moved so that 0 is exactly one of them.

    Args:
        bits: 2 to 16; 1 for two asymmetric levels.
        symmetric: whether 0 is in the middle.
        narrow: whether the lowest code is left out; None does so if symmetric.

    Raises:
        ConfigError: for bits outside their range.

    Example:
        >>> IntegerGrid(4).limits
        (-7, 7)
    """

    bits: int = 8
    symmetric: bool = True
    narrow: bool | None = None

    def __post_init__(self):
        self.keep(bits=check_bits(self.bits, least=2 if self.symmetric else 1))
        if self.bits == 1 and self.narrow:
            raise ConfigError("One bit has two levels: a narrow range needs 2 or more.")

    @property
    def leaves_out(self) -> bool:
        """Whether the lowest code is left out."""
        return bool(self.symmetric if self.narrow is None else self.narrow)

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest code; from 0 on if asymmetric."""
        if not self.symmetric:
            return 0, 2**self.bits - 1 - self.leaves_out
        return self.leaves_out - 2 ** (self.bits - 1), 2 ** (self.bits - 1) - 1

    def ends(self, x, axes, xp=np):
        if self.symmetric:
            return super().ends(x, axes, xp)
        low = xp.min(x, axis=axes, keepdims=True)
        high = xp.max(x, axis=axes, keepdims=True)
        return xp.minimum(low, 0.0), xp.maximum(high, 0.0)

    def fit(self, low, high, xp=np):
        lowest, highest = self.limits
        if self.symmetric:
            scale = xp.maximum(high / highest, low / lowest)
            scale = xp.where(scale > 0, scale, xp.ones_like(scale))
            return scale, xp.full_like(scale, lowest), xp.full_like(scale, highest)
        scale = (wide(low, high, xp) - low) / highest
        zero = xp.clip(xp.floor(-low / scale + 0.5), 0, highest)
        return scale, -zero, highest - zero

    def place(self, x, numbers, xp=np, *, clips=True, noise=None):
        """The codes, and which of `x` the levels reach.

        Args:
            x: float.
            numbers: scale, lowest and highest code.
            xp: `numpy` or `keras.ops`.
            clips: False where the levels reach all of `x`: saves work.
            noise: uniform in [0, 1), like `x`: rounds up with the probability of the
                fraction; None rounds to the nearest, halves to even.
        """
        scale, lowest, highest = numbers
        steps = x / scale
        whole = xp.round(steps) if noise is None else xp.floor(steps + noise)
        if not clips and noise is None:
            return whole, None
        codes = xp.clip(whole, lowest, highest)
        # Rounding noise must not clip what lies on the last level.
        return codes, xp.equal(codes, whole) if noise is None else xp.abs(
            steps - codes
        ) <= 1


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class MinMaxGrid(QuantizationGrid):
    """2^bits levels from the smallest to the largest value; 0 need not be one.

        code = floor((x - low) / (high - low) * (2^bits - 1)),  clipped to 0..2^bits - 1
        value = low + code / (2^bits - 1) * (high - low)

    Args:
        bits: 1 to 16.
        nearest: whether to round to the nearest level instead of down.

    Raises:
        ConfigError: for bits outside 1..16.
    """

    bits: int = 8
    nearest: bool = False

    def __post_init__(self):
        self.keep(bits=check_bits(self.bits, least=1))

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    def ends(self, x, axes, xp=np):
        low = xp.min(x, axis=axes, keepdims=True)
        return low, xp.max(x, axis=axes, keepdims=True)

    def fit(self, low, high, xp=np):
        return low, high

    def place(self, x, numbers, xp=np, **how):
        low, high = numbers
        position = (x - low) / xp.maximum(high - low, TINY) * self.top
        whole = xp.round(position) if self.nearest else xp.floor(position)
        return xp.clip(whole, 0, self.top), None

    def values(self, codes, numbers, xp=np):
        low, high = numbers
        return low + codes * ((high - low) / self.top)

    def described(self, codes, numbers, cut):
        return codebook(self.values(codes, numbers), cut)


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class PowerOfTwoGrid(QuantizationGrid):
    """0 and signed powers of two, so that products are shifts.

    With n1 = floor(log2(4/3 max|x|)) and n2 = n1 + 1 - 2^(bits-2), the levels are 0 and
    +-2^n for n2 <= n <= n1. Between two levels a value goes to the nearer one; below
    2^n2 / 2 it is 0.

    Args:
        bits: 3 to 8; one of them pays for 0, one for the sign.

    Raises:
        ConfigError: for bits outside 3..8.
    """

    bits: int = 5

    def __post_init__(self):
        self.keep(bits=check_bits(self.bits, least=3, most=8))

    def fit(self, low, high, xp=np):
        largest = xp.maximum(xp.maximum(-low, high), TINY)
        return (xp.floor(xp.log2(largest * (4 / 3))),)

    def place(self, x, numbers, xp=np, **how):
        # NumPy's float32 log2 and a backend's may differ in the last place, which
        # matters at 3/4 of a power only.
        (top,) = numbers
        size = xp.abs(x)
        lowest = top + 1 - 2 ** (self.bits - 2)
        # Nearer to 2^(n+1) than to 2^n from 3/4 of 2^(n+1) on.
        power = xp.floor(xp.log2(xp.maximum(size, TINY) * (4 / 3)))
        power = xp.minimum(xp.maximum(power, lowest), top)
        kept = size >= _power(lowest - 1, xp)
        return xp.where(kept, xp.sign(x) * _power(power, xp), xp.zeros_like(x)), None

    def values(self, codes, numbers, xp=np):
        return codes

    def described(self, codes, numbers, cut):
        return codebook(codes, cut)


def _power(exponent, xp):
    """2^exponent, exact for whole exponents."""
    two = xp.ones_like(exponent) * 2.0
    return xp.round(xp.power(two, exponent + 64.0)) * 2.0**-64


@keras.saving.register_keras_serializable("keras_dlopt")
class BinaryGrid(QuantizationGrid):
    """Two levels, -a and a, with a = mean|x|; 0 goes up."""

    def ends(self, x, axes, xp=np):
        mean = _over("mean", xp.abs(x), axes, xp)
        return -mean, mean

    def place(self, x, numbers, xp=np, **how):
        return xp.where(x >= 0, xp.ones_like(x), -xp.ones_like(x)), None


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class TernaryGrid(QuantizationGrid):
    """Three levels, -n, 0 and p: 0 where |x| <= d, else that of the sign.

        d = threshold * mean|x|  or  threshold * max|x|
        n = p = mean of |x| over |x| > d, unless they are trained

    Args:
        threshold: d over the mean magnitude, in (0, 4), or over the largest, in (0, 1).
        of: `"mean"` or `"max"`.

    Raises:
        ConfigError: for a threshold outside its range.
    """

    threshold: float = 0.7
    of: str = "mean"
    spans = False

    def __post_init__(self):
        checks.choice(self.of, name="of", choices=("mean", "max"))
        threshold = checks.number(
            self.threshold,
            name="threshold",
            above=0,
            below=4 if self.of == "mean" else 1,
            hint=f"Below that share of the {self.of} magnitude a value becomes 0.",
        )
        self.keep(threshold=threshold)

    def limit(self, x: Any, axes: tuple[int, ...], xp: Any = np) -> Any:
        """The magnitude d up to which values are 0."""
        over = xp.mean if self.of == "mean" else xp.max
        return self.threshold * over(xp.abs(x), axis=axes, keepdims=True)

    def measured(self, x, axes, xp=np):
        limit, size = self.limit(x, axes, xp), xp.abs(x)
        used = _flags(size > limit, x, xp)
        count = xp.maximum(_over("sum", used, axes, xp), 1.0)
        level = _over("sum", size * used, axes, xp) / count
        return limit, level, level

    def place(self, x, numbers, xp=np, **how):
        limit = numbers[0]
        return _flags(x > limit, x, xp) - _flags(x < -limit, x, xp), None

    def values(self, codes, numbers, xp=np):
        _, positive, negative = numbers
        if positive is negative:
            return codes * positive
        return codes * xp.where(codes > 0, positive, negative)

    def described(self, codes, numbers, cut):
        _, positive, negative = numbers
        if np.array_equal(positive, negative):
            return super().described(codes, (positive,), cut)
        return codebook(self.values(codes, numbers), cut)


def _flags(where: Any, like: Any, xp: Any) -> Any:
    return xp.where(where, xp.ones_like(like), xp.zeros_like(like))


def _over(name: str, x: Any, axes: tuple[int, ...], xp: Any) -> Any:
    """The sum or mean over axes, in NumPy that of float64."""
    if xp is np:
        found = getattr(x, name)(axis=axes, keepdims=True, dtype="float64")
        return found.astype(x.dtype)
    return getattr(xp, name)(x, axis=axes, keepdims=True)
