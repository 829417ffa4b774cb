"""Coders of the elements of an array (see `coder.ValueCoder`), but for grids."""

import dataclasses
from typing import ClassVar

import numpy as np

from keras_dlopt.codecs.coder import SymbolCoder, Values, whole_bytes
from keras_dlopt.codecs.deflate import (
    from_planes,
    read_deflated,
    to_planes,
    write_deflated,
)
from keras_dlopt.codecs.dtypes import by_value
from keras_dlopt.codecs.reader import REPAIR, Reader, varint
from keras_dlopt.errors import FormatError

MAX_CODEBOOK = 2**16

Found = tuple[np.ndarray, None]


class ConstantValues:
    """One value for all; nothing beats storing it once."""

    name: ClassVar[str] = "constant"

    def cost(self, values: Values) -> int | None:
        return values.dtype.itemsize if values.unique.size == 1 else None

    def write(self, values: Values) -> bytes:
        return _raw(values.unique)

    def read(
        self, reader: Reader, count: int, dtype: np.dtype, shape: tuple[int, ...]
    ) -> Found:
        value = _read_raw(reader, 1, dtype.itemsize, "a constant")
        reader.account("values")
        return np.full(count, value[0]), None


class RawValues:
    """The elements, little-endian."""

    name: ClassVar[str] = "raw"

    def cost(self, values: Values) -> int | None:
        return values.bits.nbytes if values.unique.size > 1 else None

    def write(self, values: Values) -> bytes:
        return _raw(values.bits)

    def read(
        self, reader: Reader, count: int, dtype: np.dtype, shape: tuple[int, ...]
    ) -> Found:
        bits = _read_raw(reader, count, dtype.itemsize, "the values")
        reader.account("values")
        return bits, None


class PlaneValues:
    """Deflate of the elements, byte by byte: by far the slowest.

    Only deflating tells the size, so `cost` keeps the stream for `write`.
    """

    name: ClassVar[str] = "planes"

    def cost(self, values: Values) -> int | None:
        bits = values.bits
        if values.unique.size == 1 or bits.nbytes <= 32:
            return None
        if values.places is None and 2 * np.count_nonzero(bits) < bits.size:
            return None  # a sparse record does better
        return len(self.write(values))

    def write(self, values: Values) -> bytes:
        kept = values.cache.get(self.name)
        if kept is None:
            kept = values.cache[self.name] = write_deflated(to_planes(values.bits))
        return kept

    def read(
        self, reader: Reader, count: int, dtype: np.dtype, shape: tuple[int, ...]
    ) -> Found:
        data = read_deflated(reader, count * dtype.itemsize, "the values")
        reader.account("values")
        return from_planes(data, dtype.itemsize), None


@dataclasses.dataclass(frozen=True)
class IndexedValues:
    """Codebook, sorted by value, and the place of each element in it."""

    name: ClassVar[str] = "codebook"
    coder: SymbolCoder

    def cost(self, values: Values) -> int | None:
        if not 1 < values.unique.size <= min(MAX_CODEBOOK, values.bits.size - 1):
            return None
        counts = np.bincount(values.index)[by_value(values.unique, values.dtype)]
        return len(self._book(values)) + whole_bytes(self.coder.cost(counts))

    def write(self, values: Values) -> bytes:
        order = by_value(values.unique, values.dtype)
        rank = np.empty(order.size, np.int64)
        rank[order] = np.arange(order.size)
        return self._book(values) + self.coder.write(rank[values.index])

    def _book(self, values: Values) -> bytes:
        book = values.unique[by_value(values.unique, values.dtype)]
        steps = np.diff(book, prepend=book.dtype.type(0))  # modulo 2**(8 itemsize)
        plain, packed = _raw(book), write_deflated(to_planes(steps))
        small = len(packed) < len(plain)
        return varint(2 * book.size + small) + (packed if small else plain)

    def read(
        self, reader: Reader, count: int, dtype: np.dtype, shape: tuple[int, ...]
    ) -> Found:
        size, packed = divmod(reader.varint("the size of a codebook"), 2)
        if not 1 <= size <= MAX_CODEBOOK:
            raise FormatError(
                f"The file is damaged: a codebook of {size} values; expected 1 to "
                f"{MAX_CODEBOOK}. {REPAIR}"
            )
        if packed:
            data = read_deflated(reader, size * dtype.itemsize, "a codebook")
            steps = from_planes(data, dtype.itemsize)
            book = np.cumsum(steps, dtype=steps.dtype)
        else:
            book = _read_raw(reader, size, dtype.itemsize, "a codebook")
        reader.account("codebook")
        index = self.coder.read(reader, count, "the codebook indices")
        if count and index.max() >= size:
            raise FormatError(
                f"The file is damaged: index {index.max()} into a codebook of {size} "
                f"values. {REPAIR}"
            )
        return book[index], None


def _raw(bits: np.ndarray) -> bytes:
    return bits.astype(bits.dtype.newbyteorder("<"), copy=False).tobytes()


def _read_raw(reader: Reader, count: int, itemsize: int, what: str) -> np.ndarray:
    data = reader.take(count * itemsize, what)
    return np.frombuffer(data, f"<u{itemsize}").astype(f"u{itemsize}")
