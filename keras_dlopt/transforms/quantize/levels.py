"""Grids that are not integers times a scale: powers of two, and plain min-max codes."""

import keras
import numpy as np
from keras import ops

from keras_dlopt.codecs.hints import Codebook
from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.base import Transform
from keras_dlopt.transforms.quantize.layout import check_bits
from keras_dlopt.transforms.quantize.through import custom_gradient, limited
from keras_dlopt.transforms.quantize.weight import check_limit


@keras.saving.register_keras_serializable("keras_dlopt")
class PowerOfTwo(Transform):
    """Rounds a weight to 0 or a signed power of two, so that products are shifts.

    With n1 = floor(log2(4/3 max|w|)) and n2 = n1 + 1 - 2^(bits-2), the levels are 0 and
    +-2^n for n2 <= n <= n1. Between two levels a weight goes to the nearer one; below
    2^n2 / 2 it is 0. The gradient passes unchanged.

    State: none.

    Args:
        bits: 3 to 8; one of them pays for 0, one for the sign.
        clip_gradient: bound of each element of the gradient that reaches the weight.

    Raises:
        ConfigError: for bits outside 3..8.

    Example:
        >>> from keras_dlopt.graph.targets import Target
        >>> w = np.array([[0.9, 0.3, -0.6, 0.01]], "float32")
        >>> PowerOfTwo(bits=4).evaluate(Target("kernel"), w, {}).ravel().tolist()
        [1.0, 0.25, -0.5, 0.0]

    Source: Zhou et al., "Incremental Network Quantization" (arXiv:1702.03044),
    equations 1 to 4.
    Differs from the paper: all weights are rounded at once and trained straight
    through, instead of in portions that are then fixed.
    """

    def __init__(self, *, bits: int = 5, clip_gradient: float | None = None):
        if not isinstance(bits, int) or isinstance(bits, bool) or not 3 <= bits <= 8:
            raise ConfigError(
                "Powers of two need bits from 3 to 8: more bits add only smaller "
                f"powers. Received: {bits!r}. Two bits are Ternary()."
            )
        self.bits = bits
        self.clip_gradient = check_limit(clip_gradient)

    @property
    def powers(self) -> int:
        """How many powers there are, 2^(bits-2)."""
        return 2 ** (self.bits - 2)

    def apply(self, weight, state, context):
        # NumPy's float32 log2 and a backend's may differ in the last place, which
        # matters at 3/4 of a power only.
        def run(w):
            size = ops.abs(w)
            largest = ops.maximum(ops.max(size), 1e-30)
            top = ops.floor(ops.log2(largest * (4 / 3)))
            value = self._rounded(w, size, top, ops)
            return value, lambda upstream: limited(upstream, self.clip_gradient)

        return custom_gradient(run, weight)

    def _rounded(self, w, size, top, xp):
        lowest = top + 1 - self.powers
        # Nearer to 2^(n+1) than to 2^n from 3/4 of 2^(n+1) on.
        power = xp.floor(xp.log2(xp.maximum(size, 1e-30) * (4 / 3)))
        power = xp.minimum(xp.maximum(power, lowest), top)
        zero = xp.zeros_like(w)
        kept = size >= _power(lowest - 1, xp)
        return xp.where(kept, xp.sign(w) * _power(power, xp), zero)

    def finalize(self, target, weight, state):
        w = np.asarray(weight, "float32")
        size = np.abs(w)
        largest = max(float(size.max(initial=0)), 1e-30)
        top = np.floor(np.log2(np.float32(largest * (4 / 3))))
        value = self._rounded(w, size, top, np).astype(weight.dtype)
        value = np.where(value == 0, np.zeros((), value.dtype), value)
        values, indices = np.unique(value, return_inverse=True)
        return value, Codebook(indices=indices.reshape(value.shape), values=values)


def _power(exponent, xp):
    """2^exponent, exact for whole exponents."""
    two = xp.ones_like(exponent) * 2.0
    return xp.round(xp.power(two, exponent + 64.0)) * 2.0**-64


@keras.saving.register_keras_serializable("keras_dlopt")
class MinMaxInteger(Transform):
    """The plain b-bit integers between a weight's smallest and largest value.

        q = floor((w - Lmin) / (Lmax - Lmin) * (2^bits - 1) + 1),  clipped to 1..2^bits
        w_q = Lmin + (q - 1) / (2^bits - 1) * (Lmax - Lmin)

    In training the weight is what the integer stands for, and the gradient passes
    straight through, each element clipped to [-clip_gradient, clip_gradient].

    Rounding down makes every weight smaller by half a step on average, and 0 is not a
    level: `FakeQuant(symmetric=False)` has the same size without both. `nearest=True`
    mends the first.

    State: none.

    Args:
        bits: 1 to 16.
        nearest: whether to round to the nearest level instead of down.
        clip_gradient: bound of each element of the gradient; None for no bound.

    Raises:
        ConfigError: for bits outside 1..16 or a bound that is not positive.

    Example:
        >>> MinMaxInteger(bits=2).integers(np.array([-1.0, -0.4, 0.9, 1.0])).tolist()
        [1, 1, 3, 4]

    Source: the textbook form of b-bit integer quantization.
    """

    def __init__(
        self,
        *,
        bits: int = 8,
        nearest: bool = False,
        clip_gradient: float | None = 1.0,
    ):
        self.bits = check_bits(bits, least=1)
        self.nearest = nearest
        self.clip_gradient = check_limit(clip_gradient)

    def integers(self, weight: np.ndarray) -> np.ndarray:
        """The integers 1..2^bits of a weight."""
        low, high = weight.min(), weight.max()
        return self._integers(weight, low, high, np).astype("int32")

    def _integers(self, w, low, high, xp):
        top = 2**self.bits - 1
        span = xp.maximum(high - low, 1e-30)
        position = (w - low) / span * top
        whole = xp.round(position) if self.nearest else xp.floor(position)
        return xp.clip(whole + 1, 1, top + 1)

    def apply(self, weight, state, context):
        def run(w):
            low, high = ops.min(w), ops.max(w)
            q = self._integers(w, low, high, ops)
            value = low + (q - 1) * ((high - low) / (2**self.bits - 1))
            return value, lambda upstream: limited(upstream, self.clip_gradient)

        return custom_gradient(run, weight)

    def finalize(self, target, weight, state):
        w = np.asarray(weight, "float32")
        low, high = w.min(), w.max()
        step = (high - low) / np.float32(2**self.bits - 1)
        levels = low + np.arange(2**self.bits, dtype="float32") * step
        levels = levels.astype(weight.dtype)
        indices = self.integers(w) - 1
        return levels[indices], Codebook(indices=indices, values=levels)
