"""Finding the grid that weights lie on from the weights alone.

Weights of a channel are `c_i s` with integers c_i, each product rounded to the array's
dtype. The largest magnitude has some code m; for each m the scale and all other codes
follow, and the smallest m for which one scale gives every weight to the bit is taken.
So nothing about how a model was made need be kept beside it.
"""

from collections.abc import Iterator

import numpy as np

from keras_dlopt.codecs.dtypes import is_float, to_bits
from keras_dlopt.codecs.grid import detect, holds, rebuild
from keras_dlopt.codecs.hints import Grid

# The largest code, for grids of up to 8 bits and then of up to 16, and how many weights
# must share a scale: two or three can be had by chance, and a scale costs 32 bits.
WIDTHS = ((255, 4), (65535, 8))
SAMPLE = 48  # elements that rule out nearly every code m that does not hold
LEAST, MOST = 1e-37, 1e37  # magnitudes whose neighbours are normal in float32
SLACK = 2.0**-50  # for the rounding of float64 itself; the result is checked

APART = 2.0  # steps by which the largest magnitude may be in doubt

Bounds = tuple[np.ndarray, np.ndarray]


def find_grid(array: np.ndarray) -> Grid | None:
    """The grid of an array: the one of its largest magnitudes first, then any.

    >>> grid = find_grid(np.outer(np.arange(8), [0.1, 0.7]).astype("float32"))
    >>> grid.codes[:3].tolist(), grid.scale.tolist()
    ([[0, 0], [1, 1], [2, 2]], [0.10000000149011612, 0.699999988079071])
    """
    return detect(array) or derive(array)


@np.errstate(invalid="ignore")  # signalling NaNs
def derive(array: np.ndarray) -> Grid | None:
    """The grid of an array: one for all of it, for each channel, or in groups.

    The scales may lie along any axis, along the last two, or along blocks of the axis
    before the last within each channel of the last. Grids of few levels come first.
    """
    if not is_float(array.dtype) or array.size < 8:
        return None
    if np.all(array == array.flat[0]):
        return None
    bits = to_bits(array)
    if np.any(bits == bits.dtype.type(1) << (8 * bits.itemsize - 1)):
        return None  # the code 0 has no sign
    for most, least in WIDTHS:
        for counts in _layouts(array.shape):
            if array.size >= least * np.prod(counts):
                grid = _on_layout(array, counts, most)
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
    first = array[
        tuple(slice(0, n // c) for n, c in zip(array.shape, counts, strict=True))
    ]
    if _scale(first.reshape(-1), most) is None:
        return None
    order = [*range(0, len(split), 2), *range(1, len(split), 2)]
    rows = array.reshape(split).transpose(order).reshape(int(np.prod(counts)), -1)
    scales = np.zeros(len(rows), np.float32)
    for i, row in enumerate(rows):
        one = _scale(row, most)
        if one is None:
            return None
        scales[i] = one
    blocks = [n for count in counts for n in (count, 1)]
    full = np.broadcast_to(scales.reshape(blocks), split).reshape(array.shape)
    plain = all(c in (1, n) for c, n in zip(counts, array.shape, strict=True))
    scale = scales.reshape(counts) if plain else np.ascontiguousarray(full)
    scale = scale.reshape(()) if scale.size == 1 else scale
    safe = np.where(full == 0, 1, full).astype(np.float64)
    codes = np.rint(array.astype(np.float64) / safe).astype(np.int64)
    grid = Grid(codes=codes, scale=scale)
    return grid if holds(grid, array) else None


def _scale(row: np.ndarray, most: int) -> np.float32 | None:
    """The scale of one channel, 0 where all of it is 0; None if it lies on no grid."""
    if row.size > 8 * SAMPLE and _scale(row[: 4 * SAMPLE], most) is None:
        return None
    size = np.unique(np.abs(row))
    if size.size > most + 1:
        return None
    size = size[size > 0]
    if not size.size:
        return np.float32(0)
    if not (float(size[0]) >= LEAST and float(size[-1]) <= MOST):
        return None  # NaN comes last
    bounds = _bounds(size)
    for code in _codes_of_largest(size.astype(np.float64), bounds, most):
        found = _fitted(size, bounds, code)
        if found is not None:
            return found
    return None


def _codes_of_largest(size: np.ndarray, bounds: Bounds, most: int) -> np.ndarray:
    """The codes of the largest magnitude with which the others are near integers."""
    doubt = (bounds[1] - bounds[0]) / size
    # Beyond, neighbours round to the same number, and any magnitudes would do.
    most = min(most, int(APART / doubt[-1]))
    codes = np.arange(1, most + 1, dtype=np.float64)
    sample = np.linspace(0, size.size - 1, min(SAMPLE, size.size)).astype(int)
    for place in sample[::-1]:
        exact = codes * (size[place] / size[-1])
        codes = codes[
            np.abs(exact - np.rint(exact)) <= exact * (doubt[place] + doubt[-1])
        ]
    return codes


def _fitted(size: np.ndarray, bounds: Bounds, code: float) -> np.float32 | None:
    """The scale with which the largest magnitude has this code, if there is one."""
    low, high = bounds
    scale = float(size[-1]) / code
    for sure in (0.1, 0.2, np.inf):  # first what can have one code only
        own = np.rint(size.astype(np.float64) / scale)
        if own[0] < 1:
            return None
        clear = own * (high - low) / size <= sure
        clear[-1] = True
        first, last = np.max((low / own)[clear]), np.min((high / own)[clear])
        scale = float(first + last) / 2
    found = _single(first, last)
    if found is None:
        return None
    rebuilt = rebuild(own.astype(np.int64), np.asarray(found), size.dtype)
    return found if np.array_equal(to_bits(rebuilt), to_bits(size)) else None


def _bounds(size: np.ndarray) -> Bounds:
    """What rounds to these magnitudes, from and to, in float64 and a little more."""
    bits = to_bits(size)
    one = bits.dtype.type(1)
    below = (bits - one).view(size.dtype).astype(np.float64)
    above = (bits + one).view(size.dtype).astype(np.float64)
    middle = size.astype(np.float64)
    # Above the largest number of a type there is none, but what rounds to it.
    above = np.where(np.isfinite(above), above, 2 * middle - below)
    return (below + middle) / 2 * (1 - SLACK), (middle + above) / 2 * (1 + SLACK)


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
