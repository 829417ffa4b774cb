"""One array in the fewest bytes, exact to the last bit.

Every layout (dense, or sparse with coded positions) is tried with every value coding
that makes sense, and the shortest record is kept.
"""

import dataclasses

import numpy as np

from keras_dlopt.codecs import grid as grids
from keras_dlopt.codecs.dtypes import (
    NAMES,
    dtype_of,
    elements,
    from_bits,
    is_float,
    number_of,
    to_bits,
)
from keras_dlopt.codecs.gaps import read_positions, write_positions
from keras_dlopt.codecs.hints import Codebook, Grid, Hint
from keras_dlopt.codecs.huffman import read_stream, write_stream
from keras_dlopt.codecs.reader import REPAIR, Reader, unzigzag, varint, zigzag
from keras_dlopt.codecs.values import (
    CONSTANT,
    GRID,
    KIND_NAMES,
    RAW,
    candidates,
    read_values,
)
from keras_dlopt.errors import ConfigError, FormatError

SPARSE = 0x80  # flag beside the kind of values
MAX_CODE = 2**31


@dataclasses.dataclass(frozen=True)
class Decoded:
    """An array out of a file.

    Attributes:
        array: the values.
        method: such as `"raw"` or `"sparse codebook"`.
        symbols: flat integers that stand for the values: grid codes, else the bit
            patterns.
    """

    array: np.ndarray
    method: str
    symbols: np.ndarray


def encode_tensor(array, *, hint: Hint | None = None) -> bytes:
    """The shortest record for an array.

    Args:
        array: any dtype in `dtypes.NAMES`, at most 15 dimensions.
        hint: how the values were made; used only if it holds exactly.
    """
    return _encode(np.asarray(array), hint, nested=False)


def _encode(array: np.ndarray, hint: Hint | None, nested: bool) -> bytes:
    if array.ndim > 15:
        raise ConfigError(
            f"Arrays of up to 15 dimensions can be stored. Received: {array.shape}. "
            "Reshape it first."
        )
    head = bytes([array.ndim << 4 | number_of(array.dtype)])
    head += b"".join(varint(size) for size in array.shape)
    if array.size == 0:
        return head + bytes([RAW])
    bits = to_bits(array)
    nonzero = np.flatnonzero(bits)
    index = _index(bits, array, hint)
    mostly_zero = 2 * nonzero.size < bits.size
    found = candidates(bits, index, array.dtype, planes=not mostly_zero)
    # One distinct value: nothing beats storing it once.
    if found[0][0] != CONSTANT:
        places = None
        if nonzero.size < bits.size:
            places = write_positions(nonzero)
            rest = (index[0][1:], index[1][nonzero] - 1)  # the pattern 0 sorts first
            for kind, data in candidates(bits[nonzero], rest, array.dtype):
                found.append((SPARSE | kind, places + data))
        if not nested:
            found += _grid_candidates(array, hint, nonzero, places)
    kind, data = min(found, key=lambda item: len(item[1]))
    return head + bytes([kind]) + data


def _index(bits, array, hint) -> tuple[np.ndarray, np.ndarray]:
    """The distinct patterns, rising, and where each element finds its own."""
    if isinstance(hint, Codebook):
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
    return np.unique(bits, return_inverse=True)


def _grid_candidates(array, hint, nonzero, places) -> list[tuple[int, bytes]]:
    if isinstance(hint, Grid) and grids.holds(hint, array):
        grid: Grid | None = hint
    else:
        grid = grids.detect(array)
    if grid is None:
        return []
    codes = np.asarray(grid.codes).reshape(-1).astype(np.int64)
    if abs(int(codes.min())) >= MAX_CODE or abs(int(codes.max())) >= MAX_CODE:
        return []
    scale = _encode(np.asarray(grid.scale), None, nested=True)
    found = [(GRID, scale + _write_codes(codes))]
    # Sparse leaves zeros out, so they must be exactly the codes 0.
    if places is not None and np.array_equal(np.flatnonzero(codes), nonzero):
        found.append((SPARSE | GRID, places + scale + _write_codes(codes[nonzero])))
    return found


def _write_codes(codes: np.ndarray) -> bytes:
    low = int(codes.min())
    return varint(int(zigzag(low))) + write_stream(codes - low)


def decode_tensor(reader: Reader) -> Decoded:
    """Reads one record.

    Raises:
        FormatError: if it is damaged or larger than the reader's allowance.
    """
    return _decode(reader, nested=False)


def _decode(reader: Reader, nested: bool) -> Decoded:
    dtype, shape = _read_head(reader)
    kind = reader.take(1, "the method of a tensor")[0]
    sparse, kind = bool(kind & SPARSE), kind & ~SPARSE
    if kind > GRID or (nested and kind == GRID):
        raise FormatError(
            f"The file uses method {kind} for a tensor, which this version does not "
            f"know here. Update keras-dlopt, or: {REPAIR}"
        )
    reader.account("header")
    size = int(np.prod(shape, dtype=object)) if shape else 1
    places = read_positions(reader, size) if sparse else None
    count = places.size if places is not None else size
    method = ("sparse " if sparse else "") + KIND_NAMES[kind]
    if kind == GRID:
        array, symbols = _read_grid(reader, dtype, shape, count, places)
    else:
        symbols = read_values(reader, kind, count, dtype.itemsize)
        if places is not None:
            symbols = _spread(symbols, places, size)
        array = from_bits(symbols, dtype, shape)
    return Decoded(array=array, method=method, symbols=symbols)


def _read_head(reader: Reader) -> tuple[np.dtype, tuple[int, ...]]:
    first = reader.take(1, "the header of a tensor")[0]
    rank, number = divmod(first, 16)
    if number >= len(NAMES):
        raise FormatError(
            f"The file uses dtype number {number}, which this version does not know. "
            f"Update keras-dlopt, or: {REPAIR}"
        )
    dtype = dtype_of(NAMES[number])
    shape = tuple(reader.varint("the shape of a tensor") for _ in range(rank))
    reader.reserve(elements(shape) * dtype.itemsize, f"a tensor of shape {shape}")
    return dtype, shape


def _read_grid(reader, dtype, shape, count, places):
    with reader.lump("codebook"):
        scale = _decode(reader, nested=True).array
    try:
        fits = np.broadcast_shapes(scale.shape, shape) == shape
    except ValueError:
        fits = False
    low = int(unzigzag(reader.varint("the lowest grid code")))
    floats = is_float(dtype) and is_float(scale.dtype)
    if not fits or not floats or abs(low) > MAX_CODE:
        raise FormatError(
            f"The file is damaged: a grid of shape {shape} and dtype {dtype} with a "
            f"scale of shape {scale.shape} and lowest code {low}. {REPAIR}"
        )
    reader.account("codebook")
    reader.check_temporary(8 * elements(shape), "a grid")
    codes = read_stream(reader, count, "the grid codes") + low
    if places is not None:
        codes = _spread(codes, places, int(np.prod(shape, dtype=object)))
    return grids.rebuild(codes.reshape(shape), scale, dtype), codes


def _spread(values: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    dense = np.zeros(size, values.dtype)
    dense[places] = values
    return dense


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The tensor codec with the interface of the others.

    >>> Tensor().decode(Tensor().encode([1.5, 0.0])).tolist()
    [1.5, 0.0]
    """

    def encode(self, array, *, hint: Hint | None = None) -> bytes:
        """The record of an array."""
        return encode_tensor(array, hint=hint)

    def decode(self, data: bytes, *, max_bytes: int = 2**31) -> np.ndarray:
        """The array of a record."""
        return decode_tensor(Reader(data, max_bytes=max_bytes)).array

    def config(self) -> dict:
        """What `codecs.get` needs to build this codec again."""
        return {"codec": "tensor"}
