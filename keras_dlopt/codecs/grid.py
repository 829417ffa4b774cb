"""Weights that are integer codes times a scale: finding, checking and rebuilding."""

from collections.abc import Iterator

import numpy as np

from keras_dlopt.codecs.dtypes import is_float, to_bits
from keras_dlopt.codecs.hints import Grid

LEVELS = (127, 63, 31, 15, 7, 3, 1)  # symmetric grids of 8 to 2 bits
MAX_SPAN = 2**16


def rebuild(codes: np.ndarray, scale: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`codes * scale` in float64, rounded to `dtype` (see `hints.Grid`)."""
    with np.errstate(all="ignore"):
        product = codes.astype(np.float64) * scale.astype(np.float64)
        if dtype.itemsize < 4:
            product = product.astype(np.float32)
        return product.astype(dtype)


def holds(grid: Grid, array: np.ndarray) -> bool:
    """Whether the grid gives exactly this array."""
    codes, scale = np.asarray(grid.codes), np.asarray(grid.scale)
    if not is_float(array.dtype) or codes.shape != array.shape or not array.size:
        return False
    if codes.dtype.kind not in "iu" or not is_float(scale.dtype):
        return False
    if int(codes.max()) - int(codes.min()) >= MAX_SPAN:
        return False
    try:
        shape = np.broadcast_shapes(scale.shape, array.shape)
    except ValueError:
        return False
    if shape != array.shape:
        return False
    rebuilt = rebuild(codes, scale, array.dtype)
    return np.array_equal(to_bits(rebuilt), to_bits(array))


@np.errstate(invalid="ignore")  # signalling NaNs
def detect(array: np.ndarray) -> Grid | None:
    """A symmetric grid whose largest magnitude is absmax, per channel or per tensor.

    Channels are the last axis. The scale tried is absmax / n, rounded to the array's
    dtype, for the grids of 8 down to 2 bits; the coarsest that holds is returned. A
    constant needs no grid.
    """
    if not is_float(array.dtype) or array.size < 16 or np.all(array == array.flat[0]):
        return None
    for magnitude in _magnitudes(array):
        for levels in reversed(LEVELS):
            grid = _on_levels(array, magnitude, levels)
            if grid is not None:
                return grid
    return None


def _magnitudes(array: np.ndarray) -> Iterator[np.ndarray]:
    size = np.abs(array)
    largest = size.max().astype(np.float64)
    if not np.isfinite(largest):
        return
    yield largest
    if array.ndim > 1:
        yield size.max(axis=tuple(range(array.ndim - 1))).astype(np.float64)


def _on_levels(array: np.ndarray, magnitude: np.ndarray, levels: int) -> Grid | None:
    with np.errstate(over="ignore"):
        scale = np.asarray(magnitude / levels).astype(np.float32)
    if array.dtype.itemsize != 4:
        scale = scale.astype(array.dtype)
    safe = np.where(scale == 0, 1, scale).astype(np.float64)
    # A few elements rule out nearly every grid that does not hold.
    few = array[(0,) * (array.ndim - 1)] if array.ndim > 1 else array[:64]
    for part in (few, array):
        codes = np.rint(part.astype(np.float64) / safe)
        if np.abs(codes).max(initial=0) > levels:
            return None
        codes = codes.astype(np.int64)
        rebuilt = rebuild(codes, scale, array.dtype)
        if not np.array_equal(to_bits(rebuilt), to_bits(part)):
            return None
    return Grid(codes=codes, scale=scale)
