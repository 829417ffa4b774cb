"""The trained codes of a weight in a float file, found by content."""

import dataclasses

import numpy as np

from keras_dlopt.export.pairs import Lattice
from keras_dlopt.export.twin import Kernel

# A weight of the file is codes * scale * factor in float32: off by some roundings.
_OFF_GRID = 1e-2
# Below this, what a weight adds to an output is under half a level for sure.
SMALLEST_MULTIPLIER = 2.0**-31
# A quarter of what an int32 holds: the rest is for the products.
FULL_BIAS = 2**29
# The same of the 40 bits that an Ethos-U has for the biases beside 16-bit activations.
WIDE_BIAS = 2**37


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """An int8 weight, a row per output channel.

    Attributes:
        rows: (channels, rest), int8.
        scale: (channels,), or (1,) for one grid, float32.
        kernel: the trained one it is; None for constants that are exact by themselves.
    """

    rows: np.ndarray
    scale: np.ndarray
    kernel: Kernel | None


def find(rows: np.ndarray, kernels: list[Kernel]) -> Codes | None:
    """The trained codes of a weight, also where a channel was scaled or turned.

    Args:
        rows: the weight as (channels, rest), float32.
        kernels: the trained ones.

    Returns:
        None for a weight that is not on a trained grid.
    """
    for kernel in kernels:
        if kernel.codes.shape == rows.shape and (found := _as(rows, kernel)):
            return found
    return _single_values(rows)


def _as(rows: np.ndarray, kernel: Kernel) -> Codes | None:
    codes, one = kernel.codes, np.arange(len(rows))
    at = np.abs(codes).argmax(axis=1)
    top = codes[one, at] * kernel.scale.astype("float64")
    factor = np.where(top == 0, 1, rows[one, at] / np.where(top == 0, 1, top))
    step = np.where(factor == 0, 1, factor) * kernel.scale
    if not np.all(np.isfinite(step)) or not np.all(step):
        return None
    few = slice(None, None, max(1, len(rows) // 4))
    for part in (few, slice(None)):  # most kernels differ in the first rows they share
        kept = codes[part] * (factor != 0)[part, None]
        if np.abs(rows[part] / step[part, None] - kept).max(initial=0) > _OFF_GRID:
            return None
    signed = (codes * np.sign(factor)[:, None]).astype("int8")
    whole = kernel.scale.size == 1 and np.allclose(factor, 1, rtol=1e-6, atol=0)
    scale = kernel.scale if whole else np.abs(step)
    return Codes(signed, scale.astype("float32"), kernel)


def _single_values(rows: np.ndarray) -> Codes | None:
    """Rows of one magnitude, and zeros: exact on a grid of their own."""
    top = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    if not np.all((rows == 0) | (np.abs(rows) == top)):
        return None
    scale = np.where(top == 0, 1, top / np.float32(127)).astype("float32")
    return Codes((np.sign(rows) * 127).astype("int8"), scale[:, 0], None)


def fitted(
    found: Codes, bias: np.ndarray | None, taken: Lattice, made: Lattice
) -> Codes:
    """Codes on scales that the kernels can multiply with.

    A channel with next to no weight, as a small BatchNormalization scale leaves it, has
    a multiplier that is 0 in int32, or a bias that does not fit. On a coarser grid its
    outputs are the same.

    Args:
        found: what was trained.
        bias: (channels,), float32, or None.
        taken: the grid of the inputs.
        made: the grid of the outputs.
    """
    step = float(taken.scale)
    floor = np.full(len(found.rows), SMALLEST_MULTIPLIER * float(made.scale) / step)
    if bias is not None:
        full = WIDE_BIAS if taken.bits == 16 else FULL_BIAS
        most = full * (1 + 1e-6)  # not below it once the scale is in float32
        floor = np.maximum(floor, np.abs(bias.astype("float64")) / most / step)
    return coarser(found, floor)


def coarser(found: Codes, floor: np.ndarray) -> Codes:
    """Codes on scales of at least `floor`, (channels,).

    Example:
        >>> found = Codes(np.array([[127, 2]], "int8"), np.ones(1, "float32"), None)
        >>> coarser(found, np.array([4.0])).rows.tolist()
        [[32, 0]]
    """
    scale = np.broadcast_to(found.scale, floor.shape)
    empty = ~found.rows.any(axis=1) & (found.scale.size > 1)
    if np.all(scale >= floor) and not empty.any():
        return found
    # Where all codes are 0 the bias alone decides on the grid.
    wide = np.where(empty, floor, np.maximum(scale, floor)).astype("float32")
    rows = np.rint(found.rows * (scale / wide)[:, None]).astype("int8")
    return Codes(rows, wide, found.kernel)
