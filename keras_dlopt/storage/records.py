"""The arrays of a file: one record each, decoded when and where they are wanted."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_dlopt.codecs.hints import Hint
from keras_dlopt.codecs.reader import REPAIR, Reader, varint
from keras_dlopt.codecs.record import Decoded, read_head
from keras_dlopt.codecs.tensor import decode_tensor, encode_tensor
from keras_dlopt.errors import FormatError
from keras_dlopt.storage.parallel import in_parallel

INDEX_FROM = 1 << 16  # bytes of records that are worth an index of their sizes
TEMPORARY = 48  # bytes an element that a decoder takes for a moment, at the most,
PIECES = 1 << 22  # and what it takes whatever their number


class Record:
    """One array in a file, not yet decoded.

    Attributes:
        data: its bytes.
        shape: of the array.
        dtype: of the array.
    """

    def __init__(self, data: Any, *, max_bytes: int):
        self.data = data
        self._max_bytes = max_bytes
        reader = Reader(data[:HEAD], max_bytes=max_bytes)
        self.dtype, self.shape = read_head(reader)
        self.spent: dict[str, int] = {}

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=object))

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return self.size * self.dtype.itemsize

    def turned(self) -> "Record":
        """The head of the transpose; for the rest it is the same."""
        other = copy.copy(self)
        other.shape = self.shape[::-1]
        return other

    @property
    def temporary(self) -> int:
        """Bytes that decoding it takes beyond the array, at the most."""
        return PIECES + TEMPORARY * self.size

    def decode(self) -> Decoded:
        """The array.

        Raises:
            FormatError: if the record is damaged, or longer than the array asks for.
        """
        data = self.data if isinstance(self.data, memoryview) else bytes(self.data)
        reader = Reader(data, max_bytes=self._max_bytes)
        decoded = decode_tensor(reader)
        if reader.left:
            raise FormatError(
                f"The file is damaged: {reader.left} bytes follow a variable. {REPAIR}"
            )
        self.spent = reader.spent
        return decoded


HEAD = 160  # bytes in which the head of a record ends: rank 15, 9 bytes a dimension


def write_records(
    arrays: Sequence[np.ndarray], hint_of: Callable[[int], Hint | None]
) -> Iterator[bytes]:
    """The records of arrays, in turn.

    Args:
        arrays: what to write.
        hint_of: how the values at a position were made, where that is known.
    """
    return in_parallel(
        lambda i: encode_tensor(arrays[i], hint=hint_of(i)),
        range(len(arrays)),
        work=sum(array.size for array in arrays),
    )


def with_index(records: list[bytes]) -> bytes:
    """Their number, their sizes, and then the records."""
    sizes = b"".join(varint(len(record)) for record in records)
    return b"".join([varint(len(records)), sizes, *records])


def split(section: Any, *, max_bytes: int) -> list[Record]:
    """The records of a section with an index; all arrays fit into `max_bytes`.

    Raises:
        FormatError: if the sizes do not fit the section, or the arrays the limit.
    """
    reader = Reader(section, max_bytes=max_bytes)
    count = reader.varint("the number of variables")
    if count > reader.left:
        raise FormatError(
            f"The file is damaged: {count} variables in {reader.left} bytes. {REPAIR}"
        )
    sizes = [reader.varint("the size of a record") for _ in range(count)]
    if sum(sizes) != reader.left:
        raise FormatError(
            f"The file is damaged: records of {sum(sizes)} bytes in {reader.left}. "
            f"{REPAIR}"
        )
    if isinstance(section, bytes):
        section = memoryview(section)
    at, records = reader.position, []
    for size in sizes:
        record = Record(section[at : at + size], max_bytes=max_bytes)
        reader.reserve(record.nbytes, f"a tensor of shape {record.shape}")
        records.append(record)
        at += size
    return records
