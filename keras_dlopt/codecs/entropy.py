"""Lower bounds for codes that give every symbol a code of its own (order 0)."""

import numpy as np
import numpy.typing as npt


def entropy_bits(counts: npt.ArrayLike) -> float:
    """Total bits of the best order-0 code, sum of n_i log2(n / n_i).

    Args:
        counts: occurrences of each symbol; zeros are allowed.

    >>> entropy_bits([2, 1, 1])
    6.0
    """
    counts = np.asarray(counts, np.float64)
    counts = counts[counts > 0]
    total = max(counts.sum(), 1)
    return float((counts * (np.log2(total) - np.log2(counts))).sum())


def mask_entropy_bits(size: int, kept: int) -> float:
    """Total bits of the positions of `kept` elements among `size`, n H(kept / n).

    >>> mask_entropy_bits(8, 4)
    8.0
    """
    return entropy_bits([kept, size - kept]) if size else 0.0


def symbol_entropy_bits(symbols: np.ndarray) -> float:
    """Total bits of the best order-0 code of an array of integers."""
    if symbols.size == 0:
        return 0.0
    return entropy_bits(np.unique(symbols, return_counts=True)[1])
