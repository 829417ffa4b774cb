"""Finding the grid that weights lie on from the weights alone.

Weights of a channel are `c_i s` with integers c_i, each product rounded to the array's
dtype. The largest magnitude has some code m; for each m the scale and all other codes
follow, and the smallest m for which one scale gives every weight to the bit is taken.
So nothing about how a model was made need be kept beside it.
"""

from collections.abc import Iterator

import numpy as np

from keras_dlopt.codecs.dtypes import is_float, to_bits
from keras_dlopt.codecs.hints import Grid
from keras_dlopt.codecs.grid import rebuild

NARROW, WIDE = 255, 65535  # the largest code: grids of up to 8 bits, then up to 16
SAMPLE = 48  # elements that rule out nearly every code m that does not hold


def derive(array: np.ndarray) -> Grid | None:
    """The grid of an array: one for all of it, for each channel, or in groups.

    The scales may lie along any axis, along the last two, or along blocks of the axis
    before the last within each channel of the last. Grids of few levels come first.
    """
    if not is_float(array.dtype) or array.size < 16:
        return None
    for most in (NARROW, WIDE):
        for shape in _layouts(array.shape):
            grid = _on_layout(array, shape, most)
            if grid is not None:
                return grid
    return None


def _layouts(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Numbers of scales along each axis, coarse before fine."""
    rank = len(shape)
    yield (1,) * rank
    if rank < 2:
        return
    for axis in reversed(range(rank)):
        if shape[axis] > 1:
            yield tuple(n if i == axis else 1 for i, n in enumerate(shape))
    last = (1,) * (rank - 2)
    if min(shape[-2:]) > 1:
        yield (*last, *shape[-2:])
    for parts in range(2, shape[-2] // 2 + 1):
        if shape[-2] % parts == 0:
            yield (*last, parts, shape[-1])


def _on_layout(array: np.ndarray, counts: tuple[int, ...], most: int) -> Grid | None:
    """The grid with so many scales along each axis, if it holds."""
    split: list[int] = []
    for size, count in zip(array.shape, counts, strict=True):
        split += [count, size // count]
    order = [*range(0, len(split), 2), *range(1, len(split), 2)]
    rows = array.reshape(split).transpose(order).reshape(int(np.prod(counts)), -1)
    if rows.shape[1] < 2:
        return None
    scales = np.zeros(len(rows), np.float32)
    for i, row in enumerate(rows):
        scale = _scale(row, most)
        if scale is None:
            return None
        scales[i] = scale
    blocks = [n for count in counts for n in (count, 1)]
    full = np.broadcast_to(scales.reshape(blocks), split).reshape(array.shape)
    plain = all(c in (1, n) for c, n in zip(counts, array.shape, strict=True))
    scale = scales.reshape(counts) if plain else np.ascontiguousarray(full)
    safe = np.where(full == 0, 1, full).astype(np.float64)
    codes = np.rint(array.astype(np.float64) / safe).astype(np.int64)
    rebuilt = rebuild(codes, scale, array.dtype)
    if not np.array_equal(to_bits(rebuilt), to_bits(array)):
        return None  # such as a zero with a sign
    return Grid(codes=codes, scale=scale)


def _scale(row: np.ndarray, most: int) -> np.float32 | None:
    """The scale of one channel, 0 where all of it is 0; None if it lies on no grid."""
    size = np.unique(np.abs(row))
    if not np.isfinite(size[-1]) or size.size > most + 1:
        return None
    size = size[size > 0]
    if not size.size:
        return np.float32(0)
    low, high = _bounds(size)
    sample = np.linspace(0, size.size - 1, min(SAMPLE, size.size)).astype(int)
    middle = size.astype(np.float64)
    codes = np.arange(1, most + 1, dtype=np.float64)
    for place in sample[::-1]:
        ratio = middle[place] / middle[-1]
        # Both magnitudes may be off by half a unit in their last place.
        error = (high[place] - low[place]) / middle[place]
        error = (error + (high[-1] - low[-1]) / middle[-1]) * ratio
        codes = codes[np.abs(codes * ratio - np.rint(codes * ratio)) <= codes * error]
    for code in codes:
        own = np.rint(middle * (code / middle[-1]))
        if own[0] < 1:
            continue
        found = _single(np.max(low / own), np.min(high / own))
        if found is not None and np.array_equal(
            to_bits(rebuild(own.astype(np.int64), found, size.dtype)), to_bits(size)
        ):
            return found
    return None


def _bounds(size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What rounds to these magnitudes, from and to, in float64."""
    bits = to_bits(size)
    one = bits.dtype.type(1)
    below = (bits - one).view(size.dtype).astype(np.float64)
    above = (bits + one).view(size.dtype).astype(np.float64)
    middle = size.astype(np.float64)
    return (below + middle) / 2, (middle + above) / 2


def _single(low: float, high: float) -> np.float32 | None:
    """The float32 with the most zeros at its end between two bounds."""
    if not 0 < low <= high < np.finfo(np.float32).max:
        return None
    first, last = (int(np.float32(x).view(np.uint32)) for x in (low, high))
    first += float(np.uint32(first).view(np.float32)) < low
    last -= float(np.uint32(last).view(np.float32)) > high
    if first > last:
        return None
    for zeros in reversed(range(24)):
        rounded = -(-first >> zeros) << zeros
        if rounded <= last:
            return np.uint32(rounded).view(np.float32)
    return None
