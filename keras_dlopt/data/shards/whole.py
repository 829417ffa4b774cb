"""Which shards a folder holds, and whether they are whole."""

import os
import pathlib
import re
import time
import warnings
from typing import Any, NamedTuple

import numpy as np

from keras_dlopt.data.shards import layout
from keras_dlopt.data.shards.records import opened, records_of
from keras_dlopt.errors import DataError, FormatError

_NAME = re.compile(r"shard-(\d{5,})-of-(\d{5,})\.tfrecord")


class StoredBlock(NamedTuple):
    """Where a block lies, how many examples it has, and how they are coded."""

    path: str
    offset: int
    length: int
    examples: int
    arrays: tuple[layout.Array, ...]


def opened_ones(
    folder: pathlib.Path, *, skip: bool
) -> tuple[layout.Header, list[StoredBlock]]:
    """The first header of the shards of a folder, and all blocks in their order.

    Raises:
        DataError: for a folder without shards, or with some missing.
        FormatError: for shards that are damaged or do not belong together.
    """
    headers, blocks = {}, []
    for path in whole_ones(folder, skip=skip):
        record, places = opened(path)
        header = headers[path] = _header(path, record)
        found = [StoredBlock(str(path), *place, header.arrays) for place in places]
        if sum(one.examples for one in found) != header.examples:
            raise FormatError(
                f"{path} is damaged: its blocks have other than {header.examples} "
                "examples."
            )
        blocks += found
    return _of_one_set(headers), blocks


def _header(path: pathlib.Path, record: bytes) -> layout.Header:
    try:
        return layout.header_from(record)
    except FormatError as error:
        raise FormatError(f"{path} is damaged: {error}.") from error


def _of_one_set(headers: dict[pathlib.Path, layout.Header]) -> layout.Header:
    """The first of headers that belong together, each to the file of its number."""
    first = next(iter(headers.values()))
    for path, header in headers.items():
        own = layout.path_of(path.parent, header.shard, header.shards)
        if own != path or header.kind() != first.kind():
            raise FormatError(
                f"{path} holds shard {header.shard} of {header.shards} of "
                f"{header.kind()}, and the first shard here {first.kind()}."
            )
    return first


class ReadSpeed(NamedTuple):
    """How fast all batches of a data set were read.

    Attributes:
        examples: how many.
        plain_bytes: of their arrays.
        file_bytes: of the shards.
        seconds: from opening to the end.
    """

    examples: int
    plain_bytes: int
    file_bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.examples:,} examples, {self.file_bytes:,} bytes, in "
            f"{self.seconds:.3f} s: {self.examples / self.seconds:,.0f} examples and "
            f"{self.plain_bytes / self.seconds / 1e6:,.0f} MB a second"
        )


def read_speed(folder: str | os.PathLike[str], data: Any) -> ReadSpeed:
    """Reads a data set to its end, and says how long that took.

    Args:
        folder: of the shards.
        data: a function without arguments that gives the data set, such as
            `lambda: read_shards(folder, batch_size=256)`; making it counts.

    Example:
        >>> import tempfile
        >>> from keras_dlopt.data import read_shards, write_shards
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_shards(np.arange(6.0), folder)
        ...     read_speed(folder, lambda: read_shards(folder)).examples
        6
    """
    import tensorflow as tf

    start = time.perf_counter()
    examples = size = 0
    for batch in data():
        arrays = tf.nest.flatten(batch)
        examples += int(arrays[0].shape[0])
        size += sum(one.dtype.size * int(tf.size(one)) for one in arrays)
    seconds = time.perf_counter() - start
    files = sum(path.stat().st_size for path in whole_ones(pathlib.Path(folder)))
    return ReadSpeed(examples, size, files, seconds)


def verify_shards(folder: str | os.PathLike[str]) -> int:
    """Reads all shards and compares each array with its SHA-256.

    Returns:
        The number of examples.

    Raises:
        DataError: for a folder without shards, or with some missing.
        FormatError: for a shard with other numbers than were written; it is named.

    Example:
        >>> import tempfile
        >>> from keras_dlopt.data import write_shards
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_shards(np.arange(6.0), folder)
        ...     verify_shards(folder)
        6
    """
    return sum(_verified(path) for path in whole_ones(pathlib.Path(folder)))


def _verified(path: pathlib.Path) -> int:
    """The number of examples of a shard with the numbers that were written."""
    records = records_of(path)
    try:
        header = layout.header_from(next(records, b""))
        _of_one_set({path: header})
        blocks = [header.block(record) for record in records]
        for i, one in enumerate(header.arrays):
            whole = np.concatenate([block[i] for block in blocks])
            if layout.digest(whole) != one.digest or len(whole) != header.examples:
                raise FormatError(
                    f"its array {i} holds other numbers than were written"
                )
    except (FormatError, ValueError) as error:
        text = str(error).removesuffix(".")
        raise FormatError(f"{path} is damaged: {text}.") from error
    return header.examples


def whole_ones(folder: pathlib.Path, *, skip: bool = False) -> list[pathlib.Path]:
    """The shards of a folder in their order."""
    found = {
        path: _NAME.fullmatch(path.name) for path in sorted(folder.glob("shard-*"))
    }
    counts = {int(match[2]) for match in found.values() if match}
    if len(counts) != 1:
        raise DataError(
            f"{folder} must hold the shards of one data set. Found: "
            f"{[path.name for path in found][:5]}. Write them with write_shards()."
        )
    (count,) = counts
    wanted = [layout.path_of(folder, n, count) for n in range(count)]
    missing = [path.name for path in wanted if not path.exists()]
    if missing and not skip:
        raise DataError(
            f"{folder} lacks {len(missing)} of {count} shards, such as {missing[0]}. "
            "Run write_shards() with the same data again, which writes what is "
            "missing; or read what is there with damaged='skip'."
        )
    return _undamaged(wanted) if skip else wanted


def _undamaged(wanted: list[pathlib.Path]) -> list[pathlib.Path]:
    """Those that are there and whole; the others are named in warnings."""
    kept = []
    for path in wanted:
        try:
            if path.exists():
                _verified(path)
                kept.append(path)
                continue
            reason = f"{path} is missing."
        except FormatError as error:
            reason = str(error)
        warnings.warn(f"{reason} Its examples are left out.", stacklevel=5)
    if not kept:
        folder, count = wanted[0].parent, len(wanted)
        raise DataError(f"None of the {count} shards in {folder} is whole.")
    return kept
