"""The different values of an array, if they are few enough for a codebook."""

import numpy as np

from keras_dlopt.codecs.dtypes import to_bits
from keras_dlopt.codecs.hints import Codebook, Hint
from keras_dlopt.codecs.speed import compiled

MOST = 2**16
SAMPLE = 2**16  # of elements that tells of arrays with too many
TOO_MANY = 0.8  # of a sample of which so many differ: 65,536 values give 0.63

Found = tuple[np.ndarray, np.ndarray]


def distinct(bits: np.ndarray, array: np.ndarray, hint: Hint | None) -> Found:
    """The distinct patterns, rising, and where each element finds its own.

    Both are empty where there are so many that a list of them is of no use.

    Args:
        bits: patterns of the elements.
        array: the elements.
        hint: a codebook is used if it holds exactly.
    """
    if isinstance(hint, Codebook):
        found = _by_hint(bits, array, hint)
        if found is not None:
            return found
    loops = compiled(bits.size)
    if loops is not None:
        return _compiled(loops, bits)
    if bits.size > 2 * SAMPLE:
        step = bits.size // SAMPLE
        sample = np.unique(bits[::step][:SAMPLE])
        if sample.size > TOO_MANY * SAMPLE:
            return _none(bits)
    unique, index = np.unique(bits, return_inverse=True)
    return (unique, index) if _worth(unique.size, bits.size) else _none(bits)


def _worth(count: int, size: int) -> bool:
    return count <= min(MOST, max(size - 1, 1))


def _none(bits: np.ndarray) -> Found:
    return bits[:0], np.zeros(0, np.int64)


def _compiled(loops: object, bits: np.ndarray) -> Found:
    most = min(MOST, max(bits.size - 1, 1))
    index = np.empty(bits.size, np.int32)
    first = loops.distinct(bits, most, index)  # type: ignore[attr-defined]
    if first.size > most:
        return _none(bits)
    order = np.argsort(first, kind="stable")
    rank = np.empty(order.size, np.int32)
    rank[order] = np.arange(order.size)
    return first[order], rank[index]


def _by_hint(bits: np.ndarray, array: np.ndarray, hint: Codebook) -> Found | None:
    indices, values = np.asarray(hint.indices), np.asarray(hint.values)
    if (
        indices.shape == array.shape
        and values.dtype == array.dtype
        and values.ndim == 1
        and indices.dtype.kind in "iu"
        and indices.min() >= 0
        and indices.max() < values.size
    ):
        flat, book = indices.reshape(-1), to_bits(values)
        if np.array_equal(book[flat], bits):
            used = np.bincount(flat, minlength=book.size) > 0
            unique = np.unique(book[used])
            return unique, np.searchsorted(unique, book)[flat]
    return None
