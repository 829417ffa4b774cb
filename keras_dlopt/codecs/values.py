"""Four ways to store a flat array of bit patterns.

Each `write_*` returns bytes; `read_values` reads them given kind, count and item
size. The kinds are numbers in the file.
"""

import numpy as np

from keras_dlopt.codecs.deflate import (
    from_planes,
    read_deflated,
    to_planes,
    write_deflated,
)
from keras_dlopt.codecs.dtypes import by_value
from keras_dlopt.codecs.huffman import read_stream, write_stream
from keras_dlopt.codecs.reader import REPAIR, Reader, varint
from keras_dlopt.errors import FormatError

RAW, PLANES, CONSTANT, CODEBOOK, GRID = range(5)
KIND_NAMES = ("raw", "planes", "constant", "codebook", "grid")
MAX_CODEBOOK = 2**16


def write_raw(bits: np.ndarray) -> bytes:
    """The elements, little-endian."""
    return bits.astype(bits.dtype.newbyteorder("<"), copy=False).tobytes()


def write_codebook(unique: np.ndarray, index: np.ndarray, dtype: np.dtype) -> bytes:
    """Codebook, sorted by value, and Huffman-coded indices.

    Args:
        unique: bit patterns, all used.
        index: positions in `unique`.
        dtype: what the patterns stand for.
    """
    order = by_value(unique, dtype)
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size)
    book = unique[order]
    steps = np.diff(book, prepend=book.dtype.type(0))  # modulo 2**(8 itemsize)
    plain, packed = write_raw(book), write_deflated(to_planes(steps))
    small = len(packed) < len(plain)
    head = varint(2 * book.size + small)
    return head + (packed if small else plain) + write_stream(rank[index])


def candidates(
    bits: np.ndarray,
    index: tuple[np.ndarray, np.ndarray],
    dtype: np.dtype,
    *,
    planes: bool = True,
) -> list[tuple[int, bytes]]:
    """Every way worth trying for a non-empty array, as pairs of kind and bytes.

    Args:
        bits: the bit patterns.
        index: `np.unique(bits, return_inverse=True)`.
        dtype: what the patterns stand for.
        planes: whether to try deflate too, by far the slowest.
    """
    unique, inverse = index
    if unique.size == 1:
        return [(CONSTANT, write_raw(unique))]
    found = [(RAW, write_raw(bits))]
    if unique.size <= MAX_CODEBOOK and unique.size < bits.size:
        found.append((CODEBOOK, write_codebook(unique, inverse, dtype)))
    if planes and bits.nbytes > 32:
        found.append((PLANES, write_deflated(to_planes(bits))))
    return found


def read_values(reader: Reader, kind: int, count: int, itemsize: int) -> np.ndarray:
    """The next `count` bit patterns; their bytes are already reserved."""
    if kind == RAW:
        bits = _read_raw(reader, count, itemsize, "the values")
    elif kind == PLANES:
        data = read_deflated(reader, count * itemsize, "the values")
        bits = from_planes(data, itemsize)
    elif kind == CONSTANT:
        value = _read_raw(reader, 1, itemsize, "a constant")
        bits = np.full(count, value[0])
    else:
        return _read_codebook(reader, count, itemsize)
    reader.account("values")
    return bits


def _read_raw(reader: Reader, count: int, itemsize: int, what: str) -> np.ndarray:
    data = reader.take(count * itemsize, what)
    return np.frombuffer(data, f"<u{itemsize}").astype(f"u{itemsize}")


def _read_codebook(reader: Reader, count: int, itemsize: int) -> np.ndarray:
    size, packed = divmod(reader.varint("the size of a codebook"), 2)
    if not 1 <= size <= MAX_CODEBOOK:
        raise FormatError(
            f"The file is damaged: a codebook of {size} values; expected 1 to "
            f"{MAX_CODEBOOK}. {REPAIR}"
        )
    if packed:
        data = read_deflated(reader, size * itemsize, "a codebook")
        steps = from_planes(data, itemsize)
        book = np.cumsum(steps, dtype=steps.dtype)
    else:
        book = _read_raw(reader, size, itemsize, "a codebook")
    reader.account("codebook")
    index = read_stream(reader, count, "the codebook indices")
    if count and index.max() >= size:
        raise FormatError(
            f"The file is damaged: index {index.max()} into a codebook of {size} "
            f"values. {REPAIR}"
        )
    return book[index]
