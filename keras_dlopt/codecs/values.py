"""Coders of the elements of an array (see `coder.ValueCoder`), but for grids."""

import dataclasses
import zlib
from typing import ClassVar

import numpy as np

from keras_dlopt.codecs.coder import SymbolCoder, Values, counted, whole_bytes
from keras_dlopt.codecs.deflate import (
    SMALL,
    from_planes,
    read_deflated,
    to_planes,
    write_deflated,
)
from keras_dlopt.codecs.dtypes import by_value
from keras_dlopt.codecs.entropy import entropy_bits
from keras_dlopt.codecs.reader import REPAIR, Reader, varint
from keras_dlopt.codecs.speed import compiled
from keras_dlopt.errors import FormatError

MAX_CODEBOOK = 2**16
SAMPLE = 2**14  # bytes of a large array that are tried
ADVANTAGE = 0.85  # of what coding byte by byte takes
MANY = 2**10  # values of a codebook that are looked at before it is tried
EVEN = 0.25  # of their size, to which the steps of a codebook of use deflate

Found = tuple[np.ndarray, None]


class ConstantValues:
    """One value for all; nothing beats storing it once."""

    name: ClassVar[str] = "constant"

    def cost(self, values: Values) -> int | None:
        return values.dtype.itemsize if values.constant else None

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
        return None if values.constant else values.bits.nbytes

    def write(self, values: Values) -> bytes:
        return _raw(values.bits)

    def read(
        self, reader: Reader, count: int, dtype: np.dtype, shape: tuple[int, ...]
    ) -> Found:
        bits = _read_raw(reader, count, dtype.itemsize, "the values")
        reader.account("values")
        return bits, None


@dataclasses.dataclass(frozen=True)
class PlaneValues:
    """Deflate of the elements, byte by byte: by far the slowest.

    Only deflating tells the size, so `cost` keeps the stream for `write`.

    Args:
        choosy: whether to pass over large arrays of which a sample shows that deflate
            finds nothing that repeats itself.
    """

    name: ClassVar[str] = "planes"
    choosy: bool = False

    def cost(self, values: Values) -> int | None:
        bits = values.bits
        if values.constant or bits.nbytes <= 32:
            return None
        if self.choosy and not _repeats(values):
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
        if not has_codebook(values):
            return None
        cache = values.cache
        if self.name not in cache:  # the same for every coder
            counts = counted(values.index)[by_value(values.unique, values.dtype)]
            cache[self.name] = counts, write_book(values)
        counts, book = cache[self.name]
        return len(book) + whole_bytes(self.coder.cost(counts))

    def write(self, values: Values) -> bytes:
        order = by_value(values.unique, values.dtype)
        rank = np.empty(order.size, np.int64)
        rank[order] = np.arange(order.size)
        _, book = values.cache[self.name]
        return bytes(book) + self.coder.write(rank[values.index])

    def read(
        self, reader: Reader, count: int, dtype: np.dtype, shape: tuple[int, ...]
    ) -> Found:
        book = read_book(reader, dtype)
        size = book.size
        index = self.coder.read(reader, count, "the codebook indices")
        if count and int(index.max()) >= size:
            raise FormatError(
                f"The file is damaged: index {index.max()} into a codebook of {size} "
                f"values. {REPAIR}"
            )
        loops = compiled(count)
        if loops is None:
            return book[index], None
        out = np.empty(count, book.dtype)
        loops.pick(book, index, out)
        return out, None


def has_codebook(values: Values) -> bool:
    """Whether a codebook is worth the trial: its values can be listed and share much.

    Where most elements but zeros have a value of their own, the list of them takes as
    much as they do, unless they lie in a row.
    """
    size = values.unique.size
    if not 1 < size <= min(MAX_CODEBOOK, values.bits.size - 1):
        return False
    if size < MANY or 2 * size < np.count_nonzero(values.bits):
        return True
    if "even" not in values.cache:
        planes = to_planes(_steps(_book(values))[: SAMPLE // values.bits.itemsize])
        values.cache["even"] = len(zlib.compress(planes, 1)) < EVEN * len(planes)
    return bool(values.cache["even"])


def _book(values: Values) -> np.ndarray:
    book: np.ndarray = values.unique[by_value(values.unique, values.dtype)]
    return book


def _steps(book: np.ndarray) -> np.ndarray:
    steps: np.ndarray = np.diff(book, prepend=book.dtype.type(0))
    return steps  # modulo 2**(8 itemsize)


def write_book(values: Values) -> bytes:
    """The codebook, rising."""
    book = _book(values)
    steps = _steps(book)
    plain, packed = _raw(book), write_deflated(to_planes(steps))
    small = len(packed) < len(plain)
    return varint(2 * book.size + small) + (packed if small else plain)


def read_book(reader: Reader, dtype: np.dtype) -> np.ndarray:
    """The patterns of a codebook.

    Raises:
        FormatError: if it is damaged.
    """
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
    return book


def _repeats(values: Values) -> bool:
    """Whether deflate does better on a sample than a code for each byte alone."""
    itemsize = values.dtype.itemsize
    if values.bits.nbytes <= SMALL:
        return True
    size = SAMPLE // itemsize
    start = (values.bits.size - size) // 2
    planes = to_planes(values.bits[start : start + size])
    counts = [
        np.bincount(np.frombuffer(planes, np.uint8)[k * size : (k + 1) * size])
        for k in range(itemsize)
    ]
    alone = sum(entropy_bits(some) for some in counts) / 8
    return len(zlib.compress(planes, 6)) < ADVANTAGE * alone


def _raw(bits: np.ndarray) -> bytes:
    return bits.astype(bits.dtype.newbyteorder("<"), copy=False).tobytes()


def _read_raw(reader: Reader, count: int, itemsize: int, what: str) -> np.ndarray:
    data = reader.take(count * itemsize, what)
    return np.frombuffer(data, f"<u{itemsize}").astype(f"u{itemsize}")
