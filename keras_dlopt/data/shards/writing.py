"""Writes a data set as compressed shards."""

import dataclasses
import io
import os
import pathlib
import struct
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_dlopt import checks
from keras_dlopt.data.shards import layout
from keras_dlopt.data.shards.coding import KINDS, encoded, filters
from keras_dlopt.data.shards.records import first_record, framed
from keras_dlopt.errors import DataError, FormatError
from keras_dlopt.files import check_folder, write_atomic


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """What `write_shards` wrote.

    Attributes:
        examples: how many.
        files: how many shards.
        written: how many of them were not there already.
        plain_bytes: of all arrays.
        file_bytes: of all shards.
        filters: how each array of an example is coded.
        seconds: of writing.
    """

    examples: int
    files: int
    written: int
    plain_bytes: int
    file_bytes: int
    filters: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        ratio = self.plain_bytes / max(self.file_bytes, 1)
        return (
            f"{self.examples:,} examples in {self.files} shards: {self.plain_bytes:,} "
            f"-> {self.file_bytes:,} bytes ({ratio:.1f}x), {self.written} written in "
            f"{self.seconds:.1f} s"
        )


def write_shards(
    data: Any,
    folder: str | os.PathLike[str],
    *,
    shard_examples: int = 16_384,
    block_examples: int = 1_024,
    level: int = 19,
) -> ShardReport:
    """Writes a data set into compressed files, without loss and in order.

    Each array is coded by zstandard after the reversible filter that makes its first
    block smallest; images in [0, 1] that are multiples of 1/255 are stored as bytes.
    Files appear whole. Called again after a break, with the same data, it writes what
    is missing: shards with the same numbers in them stay.

    Args:
        data: arrays of one length, in any structure, such as `(x, y)` or a dict; each
            example a row of each.
        folder: a new folder, or one of an earlier call.
        shard_examples: examples in a file.
        block_examples: examples that are coded together; larger ones get smaller.
        level: of zstandard, 1 (fast) to 22.

    Raises:
        DataError: for arrays of several lengths, none at all, or of texts or objects.
        ConfigError: for a folder that cannot be written.

    Example:
        >>> import tempfile
        >>> from keras_dlopt.data import read_shards
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     x = np.zeros((100, 8, 8), "uint8")
        ...     report = write_shards((x, np.arange(100) % 10), folder)
        ...     batch, labels = next(iter(read_shards(folder, batch_size=4)))
        >>> report.examples, labels.numpy().tolist()
        (100, [0, 1, 2, 3])
    """
    start = time.perf_counter()
    shard_examples = checks.count(shard_examples, name="shard_examples")
    block_examples = checks.count(block_examples, name="block_examples")
    level = checks.whole(level, name="level", least=1, most=22)
    arrays = _arrays(data)
    folder = pathlib.Path(folder)
    check_folder(folder, name="folder")
    folder.mkdir(parents=True, exist_ok=True)
    count = len(arrays[0])
    shards = -(-count // shard_examples)
    _refuse_others(folder, shards)
    chosen = tuple(_filter(one[:block_examples], level) for one in arrays)
    written = size = 0
    for shard in range(shards):
        rows = slice(shard * shard_examples, (shard + 1) * shard_examples)
        parts = [one[rows] for one in arrays]
        header = layout.Header(
            shard,
            shards,
            len(parts[0]),
            layout.described(data),
            tuple(_described(*one, level) for one in zip(parts, chosen, strict=True)),
        )
        path = layout.path_of(folder, shard, shards)
        if not _is_there(path, header):
            records = [header.to_json(), *_blocks(header, parts, block_examples, level)]
            write_atomic(path, framed(records))
            written += 1
        size += path.stat().st_size
    return ShardReport(
        count,
        shards,
        written,
        sum(one.nbytes for one in arrays),
        size,
        tuple(dict.fromkeys(chosen)),
        time.perf_counter() - start,
    )


def _arrays(data: Any) -> list[np.ndarray]:
    arrays = [np.asarray(one) for one in layout.flat(data)]
    lengths = {len(one) if one.ndim else 0 for one in arrays}
    if len(lengths) != 1 or lengths == {0}:
        raise DataError(
            "data must be arrays of one length, with an example or more. Received "
            f"arrays of the shapes {[one.shape for one in arrays]}."
        )
    for one in arrays:
        if one.dtype.kind not in KINDS:
            raise DataError(
                f"Shards hold numbers and booleans. Received an array of {one.dtype}. "
                "Give texts as numbers, such as keras.layers.StringLookup makes, and "
                "images as pixels."
            )
    return [one.astype(one.dtype.newbyteorder("<"), copy=False) for one in arrays]


def _refuse_others(folder: pathlib.Path, shards: int) -> None:
    ours = {layout.path_of(folder, n, shards).name for n in range(shards)}
    others = sorted(p.name for p in folder.glob("shard-*.tfrecord"))
    others = [name for name in others if name not in ours]
    if others:
        raise DataError(
            f"{folder} holds shards of another data set, such as {others[0]}. Choose "
            "an empty folder, or remove them."
        )


def _filter(block: np.ndarray, level: int) -> str:
    """The filter that makes a block smallest."""
    sizes = {}
    for name in filters(block):
        made = encoded(block, name, level)
        if made is not None:
            sizes[name] = len(made)
    return min(sizes, key=lambda name: sizes[name])


def _described(part: np.ndarray, name: str, level: int) -> layout.Array:
    if encoded(part[:1], name, 1) is None or (
        name.startswith("of 255") and encoded(part, name, 1) is None
    ):
        name = _filter(part, level)  # a later example is no multiple of 1/255
    return layout.Array(part.dtype.str, part.shape[1:], name, layout.digest(part))


def _is_there(path: pathlib.Path, header: layout.Header) -> bool:
    if not path.exists():
        return False
    try:
        return layout.header_from(first_record(path)).same_data(header)
    except FormatError:
        return False


def _blocks(
    header: layout.Header, parts: list[np.ndarray], size: int, level: int
) -> Iterator[bytes]:
    for at in range(0, header.examples, size):
        block = io.BytesIO()
        rows = [part[at : at + size] for part in parts]
        block.write(struct.pack("<Q", len(rows[0])))
        for one, array in zip(rows, header.arrays, strict=True):
            data = encoded(one, array.filter, level)
            assert data is not None, "the whole shard was tried"
            block.write(struct.pack("<Q", len(data)) + data)
        yield block.getvalue()
