"""The arrays of a file: one record each, decoded when and where they are wanted."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from keras_dlopt.codecs.hints import Hint
from keras_dlopt.codecs.reader import REPAIR, Reader, varint
from keras_dlopt.codecs.record import Decoded, read_head
from keras_dlopt.codecs.tensor import decode_tensor, encode_tensor
from keras_dlopt.errors import FormatError

INDEX_FROM = 1 << 16  # bytes of records that are worth an index of their sizes
PARALLEL_FROM = 1 << 20  # elements that are worth threads
MOST_THREADS = 8

T = TypeVar("T")
R = TypeVar("R")


class Record:
    """One array in a file, not yet decoded.

    Attributes:
        data: its bytes.
        shape: of the array.
        dtype: of the array.
    """

    def __init__(self, data: memoryview, *, max_bytes: int):
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

    def decode(self) -> Decoded:
        """The array.

        Raises:
            FormatError: if the record is damaged, or longer than the array asks for.
        """
        reader = Reader(self.data, max_bytes=self._max_bytes)
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
) -> list[bytes]:
    """The records of arrays.

    Args:
        arrays: what to write.
        hint_of: how the values at a position were made, where that is known.
    """
    return list(
        in_parallel(
            lambda i: encode_tensor(arrays[i], hint=hint_of(i)),
            range(len(arrays)),
            work=sum(array.size for array in arrays),
        )
    )


def with_index(records: list[bytes]) -> bytes:
    """Their number, their sizes, and then the records."""
    sizes = b"".join(varint(len(record)) for record in records)
    return b"".join([varint(len(records)), sizes, *records])


def split(section: bytes, *, max_bytes: int) -> list[Record]:
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
    view, at, records = memoryview(section), reader.position, []
    for size in sizes:
        record = Record(view[at : at + size], max_bytes=max_bytes)
        reader.reserve(record.nbytes, f"a tensor of shape {record.shape}")
        records.append(record)
        at += size
    return records


def in_parallel(
    work_on: Callable[[T], R], items: Iterable[T], *, work: int
) -> Iterator[R]:
    """`map`, in threads where there is enough to do; few results wait at a time.

    Args:
        work_on: what to do with each item.
        items: in the order of the results.
        work: elements in all.
    """
    threads = min(len(os.sched_getaffinity(0)), MOST_THREADS)
    if threads < 2 or work < PARALLEL_FROM:
        yield from map(work_on, items)
        return
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque[concurrent.futures.Future[R]] = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(work_on, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
