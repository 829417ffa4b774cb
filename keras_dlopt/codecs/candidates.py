"""Numbers that a few bits choose: the same candidates in every process.

The elements of an array have places, in an order that scatters neighbours, and at each
place each number k has one candidate: a normal deviate that follows from both by whole
numbers alone. A block of elements is stored as the number whose candidates it is.
"""

import functools
import math
from typing import Any

import numpy as np

DEVIATION = 60  # of a candidate
LARGEST = 252  # candidates lie between this and its negative
BITS = 20  # of a number at most
PLACES = 2**24  # of an array at most
PER_BIT = 512  # places that a bit may stand for: bounds the work
DEAR = 5  # bits a place from which on codes of another kind do as well
LANES = 4  # candidates of one draw of 64 bits

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # of SplitMix64, as are the next two
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def scattered(count: int) -> np.ndarray:
    """The elements in the order of their places: those of a block lie far apart.

    >>> scattered(8).tolist()
    [0, 5, 2, 7, 4, 1, 6, 3]
    """
    step = max(1, count * 618_034 // 1_000_000)
    while math.gcd(step, count) > 1:
        step += 1
    found: np.ndarray = np.arange(count, dtype=np.int64) * step % max(count, 1)
    return found


@functools.cache
def deviates() -> np.ndarray:
    """The candidate that each number of 16 bits stands for.

    >>> deviates()[[0, 32767, 32768 + 500]].tolist()
    [0, 252, -1]
    """
    limits = [
        round(32768 * math.erf((j - 0.5) / (DEVIATION * math.sqrt(2))))
        for j in range(1, LARGEST + 1)
    ]
    size = np.searchsorted(limits, np.arange(32768), side="right").astype(np.int16)
    return np.concatenate([size, -size])


def of(numbers: Any, places: Any) -> np.ndarray:
    """The candidates of numbers at places, in the shape that both broadcast to.

    Args:
        numbers: whole numbers below 2**20.
        places: whole numbers below 2**24.

    Returns:
        int16.
    """
    places = np.asarray(places, np.uint64)
    drawn = _drawn(np.asarray(numbers, np.uint64), places >> np.uint64(2))
    drawn >>= (places & np.uint64(LANES - 1)) << np.uint64(4)
    found: np.ndarray = deviates()[drawn & np.uint64(0xFFFF)]
    return found


def drawn(numbers: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The candidates of numbers at all places of draws, sooner than one by one.

    Args:
        numbers: whole numbers below 2**20.
        draws: whole numbers, of four places each: those of draw 5 are 20 to 23.

    Returns:
        int16, in the shape that both broadcast to, with four times its last dimension.
    """
    found = _drawn(np.asarray(numbers, np.uint64), np.asarray(draws, np.uint64))
    lanes = found.astype("<u8", copy=False).view("<u2")
    return np.asarray(deviates()[lanes])


@np.errstate(over="ignore")
def _drawn(numbers: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """64 bits for each number and draw: a step of SplitMix64."""
    x = np.asarray((numbers << np.uint64(44)) + draws + np.uint64(1))
    x *= _GOLDEN
    x ^= x >> np.uint64(30)
    x *= _FIRST
    x ^= x >> np.uint64(27)
    x *= _SECOND
    x ^= x >> np.uint64(31)
    return x
