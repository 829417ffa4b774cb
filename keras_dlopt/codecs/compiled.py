"""The inner loops, compiled by numba when they first run, without Python's lock.

Each has a twin in NumPy beside its caller; both give the same. Integers only, but for
`rebuild`, whose product is one rounding of float64 and one to the dtype.
"""

import types
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from keras_dlopt.codecs import context_model

F = TypeVar("F", bound=Callable[..., Any])
U16, U32, U64 = np.uint32(16), np.uint32(32), np.uint64(16)
LOW = np.uint32(1 << 16)
HALF = np.uint64(0xFFFF)


def jit(function: F) -> F:
    """The compiled function, kept on disk where there is a place to keep it."""
    try:
        return cast(F, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # no folder that can be written
        return cast(F, numba.njit(nogil=True)(function))


@jit
def rans_encode(
    symbols: np.ndarray,
    frequency: np.ndarray,
    start: np.ndarray,
    precision: int,
    states: np.ndarray,
    words: np.ndarray,
) -> int:
    """Fills `words` from the end; returns where they begin. See `rans.py`."""
    lanes, place = states.size, words.size
    shift, top = np.uint32(precision), np.uint32(32 - precision)
    for i in range(symbols.size - 1, -1, -1):
        lane, symbol = i & (lanes - 1), symbols[i]
        f, x = frequency[symbol], states[lane]
        if (x >> top) >= f:
            place -= 1
            words[place] = np.uint16(x & np.uint32(0xFFFF))
            x >>= U16
        q = x // f
        states[lane] = (q << shift) + (x - q * f) + start[symbol]
    return place


@jit
def rans_decode(
    states: np.ndarray,
    words: np.ndarray,
    count: int,
    table: np.ndarray,
    precision: int,
    out: np.ndarray,
) -> int:
    """Fills `out`; returns the number of words read, more than `count` if damaged.

    `words` has as many more elements than `count` as there are lanes.
    """
    lanes, place, i = states.size, 0, 0
    mask, shift = np.uint32((1 << precision) - 1), np.uint32(precision)
    while i < out.size:
        for lane in range(min(lanes, out.size - i)):
            x = states[lane]
            entry = table[x & mask]
            x = np.uint32((entry >> U64) & HALF) * (x >> shift) + np.uint32(
                entry & HALF
            )
            out[i] = entry >> np.uint64(32)
            i += 1
            short = x < LOW
            more = np.uint32((x << U16) | np.uint32(words[place]))
            states[lane] = more if short else x
            place += short
        if place > count:
            return place
    return place


@jit
def huffman_decode(
    data: np.ndarray,
    position: int,
    fast: np.ndarray,
    ends: np.ndarray,
    lengths: np.ndarray,
    symbols: np.ndarray,
    out: np.ndarray,
) -> int:
    """Fills `out` from bit `position` on; returns the bit after, -1 if data ends.

    `fast` holds, for the next 12 bits, length and place of the code, or 0; `data` has
    8 more bytes at its end than belong to it.
    """
    last = 8 * (data.size - 8)
    for i in range(out.size):
        byte = position >> 3
        word = np.uint32(0)
        for k in range(4):
            word = (word << np.uint32(8)) | np.uint32(data[byte + k])
        window = np.uint32(word << np.uint32(position & 7)) >> np.uint32(8)
        entry = fast[window >> np.uint32(12)]
        if entry:
            place = entry >> 5
            position += entry & 31
        else:
            place = np.searchsorted(ends, np.int64(window), side="right")
            position += lengths[place]
        out[i] = symbols[place]
        if position > last:
            return -1
    return position


@jit
def positions(gaps: np.ndarray, limit: int, out: np.ndarray) -> int:
    """Fills `out` with the positions that gap symbols give; returns how many."""
    at, found = np.int64(0), 0
    for gap in gaps:
        at += gap
        if gap != limit:
            out[found] = at
            found += 1
            at += 1
    return found


@jit
def gap_symbols(gaps: np.ndarray, limit: int, out: np.ndarray) -> None:
    """Fills `out` with the symbols of gaps; see `gaps.py`."""
    place = 0
    for gap in gaps:
        while gap >= limit:
            out[place] = limit
            place += 1
            gap -= limit
        out[place] = gap
        place += 1


@jit
def count(symbols: np.ndarray, size: int) -> np.ndarray:
    """How often each integer below `size` occurs."""
    found = np.zeros((2, size), np.int64)
    last = symbols.size - symbols.size % 2
    for i in range(0, last, 2):
        found[0, symbols[i]] += 1
        found[1, symbols[i + 1]] += 1
    if last < symbols.size:
        found[0, symbols[last]] += 1
    both: np.ndarray = found[0] + found[1]
    return both


@jit
def spread(places: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    """Puts values where they belong."""
    for i in range(places.size):
        out[places[i]] = values[i]


@jit
def pick(book: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
    """`book[index]`."""
    for i in range(index.size):
        out[i] = book[index[i]]


@jit
def merge(planes: np.ndarray, rotate: bool, out: np.ndarray) -> None:
    """Elements out of their bytes, the lowest in the first row.

    Args:
        planes: a row for each byte of an element.
        rotate: whether the lowest bit is to become the highest.
        out: unsigned integers.
    """
    size = planes.shape[0]
    top = np.uint64(8 * size - 1)
    if size == 4 and rotate:
        a, b, c, d = planes[0], planes[1], planes[2], planes[3]
        for i in range(out.size):
            low = np.uint32(a[i]) | np.uint32(b[i]) << np.uint32(8)
            high = np.uint32(c[i]) | np.uint32(d[i]) << np.uint32(8)
            both = np.uint32(low | high << U16)
            out[i] = (both >> np.uint32(1)) | (both << np.uint32(31))
        return
    for i in range(out.size):
        value = np.uint64(0)
        for k in range(size):
            value |= np.uint64(planes[k, i]) << np.uint64(8 * k)
        if rotate:
            value = (value >> np.uint64(1)) | ((value & np.uint64(1)) << top)
        out[i] = value


@jit
def split(bits: np.ndarray, rotate: bool, planes: np.ndarray) -> None:
    """The inverse of `merge`."""
    size = planes.shape[0]
    top = np.uint64(8 * size - 1)
    if size == 4 and rotate:
        a, b, c, d = planes[0], planes[1], planes[2], planes[3]
        for i in range(bits.size):
            x = np.uint32(bits[i])
            both = np.uint32((x << np.uint32(1)) | (x >> np.uint32(31)))
            a[i] = both & np.uint32(255)
            b[i] = (both >> np.uint32(8)) & np.uint32(255)
            c[i] = (both >> U16) & np.uint32(255)
            d[i] = both >> np.uint32(24)
        return
    for i in range(bits.size):
        value = np.uint64(bits[i])
        if rotate:
            value = (value << np.uint64(1)) | (value >> top)
        for k in range(size):
            planes[k, i] = (value >> np.uint64(8 * k)) & np.uint64(255)


@jit
def rebuild(codes: np.ndarray, low: int, scale: np.ndarray, out: np.ndarray) -> None:
    """`(codes + low) * scale`, the scale repeating itself, in float64."""
    size, k = scale.size, 0
    for i in range(codes.size):
        out[i] = np.float64(np.int64(codes[i]) + low) * scale[k]
        k += 1
        if k == size:
            k = 0


@jit
def distinct(bits: np.ndarray, most: int, index: np.ndarray) -> np.ndarray:
    """The distinct patterns in the order of their first occurrence, up to `most` + 1.

    `index` receives the place of each pattern among them; it is of use if there are no
    more than `most`.
    """
    size = 4
    while size < 4 * most:
        size *= 2
    slots = np.full(size, -1, np.int32)
    found = np.empty(most + 1, bits.dtype)
    count = 0
    for i in range(bits.size):
        key = bits[i]
        place = (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
        at = np.int64(place) & (size - 1)
        while slots[at] >= 0 and found[slots[at]] != key:
            at = (at + 1) & (size - 1)
        if slots[at] < 0:
            if count > most:
                break
            slots[at] = count
            found[count] = key
            count += 1
            if count > most:
                break
        index[i] = slots[at]
    return found[:count]


def _compile(names: tuple[str, ...]) -> dict[str, Any]:
    """The functions of `context_model`, each compiled and calling compiled ones."""
    space = dict(vars(context_model))
    for name in names:
        plain = vars(context_model)[name]
        copy = types.FunctionType(plain.__code__, space, name)
        copy.__module__, copy.__qualname__ = plain.__module__, plain.__qualname__
        space[name] = jit(copy)
    return space


WALK = ("code_bit", "learn", "alone", "nonzero", "magnitude", "flags")
walk = _compile((*WALK, "start_row", "pick", "signed", "walk"))["walk"]
