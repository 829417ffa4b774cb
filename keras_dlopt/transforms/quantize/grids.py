"""Grids of integers: which codes b bits have, and the scale that fits a range."""

import dataclasses
from typing import Any

import numpy as np

# Below this a range holds nothing: all of it is one level.
SMALLEST = 1e-6


@dataclasses.dataclass(frozen=True)
class IntegerGrid:
    """The codes of b bits, counted from the code of 0.

    Symmetric: scale = max(-low / -lowest, high / highest) with the codes
    [-(2^(b-1) - 1), 2^(b-1) - 1], or from -2^(b-1) on if not narrow.
    Asymmetric: scale = (high - low) / levels with the 2^b levels (2^b - 1 if narrow)
    from low to high, moved so that 0 is exactly one of them.

    Attributes:
        bits: number of bits.
        symmetric: whether 0 is in the middle.
        narrow: whether the lowest code is left out.
    """

    bits: int
    symmetric: bool = True
    narrow: bool = True

    @property
    def steps(self) -> int:
        """Steps between the lowest and the highest level of an asymmetric grid."""
        return 2**self.bits - 1 - int(self.narrow)

    @property
    def limits(self) -> tuple[int, int]:
        """The codes of a symmetric grid."""
        high = 2 ** (self.bits - 1) - 1
        return (-high if self.narrow else -high - 1), high

    def fit(self, low: Any, high: Any, xp: Any = np) -> tuple[Any, Any, Any]:
        """Scale, lowest and highest code for ranges with low <= 0 <= high.

        Args:
            low: smallest values, float.
            high: largest values, like `low`.
            xp: `numpy` or `keras.ops`.
        """
        if self.symmetric:
            lowest, highest = self.limits
            scale = xp.maximum(high / highest, low / lowest)
            scale = xp.where(scale > 0, scale, xp.ones_like(scale))
            return scale, xp.full_like(scale, lowest), xp.full_like(scale, highest)
        high = xp.maximum(high, low + SMALLEST)
        scale = (high - low) / self.steps
        zero = xp.clip(xp.floor(-low / scale + 0.5), 0, self.steps)
        return scale, -zero, self.steps - zero

    def values(self, x: np.ndarray, low: Any, high: Any) -> np.ndarray:
        """`x` rounded to the grid of a range, in NumPy."""
        scale, lowest, highest = self.fit(low, high)
        return np.clip(np.rint(x / scale), lowest, highest) * scale
