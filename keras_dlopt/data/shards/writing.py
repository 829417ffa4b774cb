"""Writes a data set as compressed shards."""

import dataclasses
import io
import os
import pathlib
import struct
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.data.shards import coding, layout
from keras_dlopt.data.shards.given import Arrays, given
from keras_dlopt.data.shards.records import framed, opened
from keras_dlopt.errors import ConfigError, DataError, FormatError
from keras_dlopt.files import check_folder, write_atomic

_TRIED = 1024  # examples on which filters are compared


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """What `write_shards` wrote.

    Attributes:
        examples: how many.
        files: how many shards.
        written: how many of them were not there already.
        plain_bytes: of all arrays.
        file_bytes: of all shards.
        filters: how each array of an example is coded, in the last shard.
        seconds: of writing.
        largest_errors: of each array, in its units; 0 where nothing is lost.
        rms_errors: root of the mean square of the errors of each array.
    """

    examples: int
    files: int
    written: int
    plain_bytes: int
    file_bytes: int
    filters: tuple[str, ...]
    seconds: float
    largest_errors: tuple[float, ...]
    rms_errors: tuple[float, ...]

    def __str__(self) -> str:
        ratio = self.plain_bytes / max(self.file_bytes, 1)
        text = (
            f"{self.examples:,} examples in {self.files} shards: {self.plain_bytes:,} "
            f"-> {self.file_bytes:,} bytes ({ratio:.1f}x), {self.written} written in "
            f"{self.seconds:.1f} s, "
        )
        lost = zip(self.filters, self.largest_errors, self.rms_errors, strict=True)
        errors = [
            f"{name} is off by {rms:.3g} (root mean square), {largest:.3g} at most"
            for name, largest, rms in lost
            if coding.is_lossy(name)
        ]
        return text + ("with loss: " + "; ".join(errors) if errors else "without loss")


def write_shards(
    data: Any,
    folder: str | os.PathLike[str],
    *,
    coding: Any = None,
    shard_examples: int = 16_384,
    block_examples: int = 2_048,
    level: int = 22,
) -> ShardReport:
    """Writes a data set into compressed files, in order, and without loss unless asked.

    Each array is coded by zstandard after the reversible filter that makes its first
    block smallest; images in [0, 1] that are multiples of 1/255 are stored as bytes.
    Files appear whole. Called again after a break, with the same data, it writes what
    is missing: shards that the same numbers were written to stay.

    Args:
        data: arrays of one length, in any structure, such as `(x, y)` or a dict, each
            example a row of each; or a `tf.data.Dataset` of batches, which is read
            twice and held a shard at a time.
        folder: a new folder, or one of an earlier call.
        coding: in place of the reversible filter: `"png"` or `"webp"` (no loss),
            `"jpeg 90"` or `"webp 80"` (lossy, with the quality) for images of uint8;
            `"levels 8"` or `"levels 16"` (lossy: the nearest of 2^8 or 2^16 levels of
            a block) for floats. For data of several arrays one entry for each, in
            their structure, None for the filter.
        shard_examples: examples in a file.
        block_examples: examples that are coded together; larger ones get smaller.
        level: of zstandard, 1 (fast) to 22.

    Returns:
        Sizes, and for lossy codings the errors.

    Raises:
        DataError: for arrays of several lengths, none at all, or of texts or objects,
            and for a data set that does not end or gives other examples when read
            again.
        ConfigError: for a folder that cannot be written, or a coding that does not fit.

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
    folder = pathlib.Path(folder)
    check_folder(folder, name="folder")
    source = given(data, block_examples)
    asked = _asked(coding, source.first)
    folder.mkdir(parents=True, exist_ok=True)
    shards = -(-source.examples // shard_examples)
    _refuse_others(folder, shards)
    headers, written, size = [], 0, 0
    for shard, parts in enumerate(source.parts(shard_examples)):
        header = layout.Header(
            shard, shards, len(parts[0]), source.structure, _sources(parts, asked)
        )
        path = layout.path_of(folder, shard, shards)
        there = _there(path, header)
        if there is None:
            there, blocks = _coded(header, parts, block_examples, level)
            write_atomic(path, framed([there.to_json(), *blocks]))
            written += 1
        headers.append(there)
        size += path.stat().st_size
    plain = sum(one[:1].nbytes for one in source.first) * source.examples
    times = {"seconds": time.perf_counter() - start}
    return _report(
        headers, written=written, plain_bytes=plain, file_bytes=size, **times
    )


def _report(headers: list[layout.Header], **found: Any) -> ShardReport:
    examples = sum(one.examples for one in headers)
    columns = list(zip(*(one.arrays for one in headers), strict=True))
    squares = [
        sum(
            array.mean_square * header.examples
            for array, header in zip(column, headers, strict=True)
        )
        for column in columns
    ]
    return ShardReport(
        examples=examples,
        files=len(headers),
        filters=tuple(column[-1].filter for column in columns),
        largest_errors=tuple(
            max(array.largest_error for array in column) for column in columns
        ),
        rms_errors=tuple(float(np.sqrt(one / examples)) for one in squares),
        **found,
    )


def _asked(names: Any, first: Arrays) -> list[str | None]:
    """The coding of each array; None for a reversible filter."""
    # Keras' tree takes None for a leaf, as it does a text.
    flat = keras.tree.flatten(names)
    found = flat * len(first) if names is None else flat
    if len(found) != len(first):
        raise ConfigError(
            f"coding must name one for each of {len(first)} arrays. Received: "
            f"{names!r}. Give None for those that are to be coded without one."
        )
    for name, array in zip(found, first, strict=True):
        if name is not None and not (
            coding.is_coding(name) and coding.suits(name, array.dtype, array.shape[1:])
        ):
            raise ConfigError(
                f"coding must be 'png', 'webp', 'jpeg 90' or 'webp 80' for images of "
                "uint8 with 1 or 3 colors, or 'levels 8' or 'levels 16' for floats. "
                f"Received: {name!r} for {array.dtype} of the shape {array.shape[1:]}."
            )
    return list(found)


def _refuse_others(folder: pathlib.Path, shards: int) -> None:
    ours = {layout.path_of(folder, n, shards).name for n in range(shards)}
    others = sorted(p.name for p in folder.glob("shard-*.tfrecord"))
    others = [name for name in others if name not in ours]
    if others:
        raise DataError(
            f"{folder} holds shards of another data set, such as {others[0]}. Choose "
            "an empty folder, or remove them."
        )


def _sources(parts: Arrays, asked: Sequence[str | None]) -> tuple[layout.Array, ...]:
    return tuple(
        layout.Array(one.dtype.str, one.shape[1:], name or "", "", layout.digest(one))
        for one, name in zip(parts, asked, strict=True)
    )


def _there(path: pathlib.Path, header: layout.Header) -> layout.Header | None:
    """The header of a shard that these numbers were written to before."""
    if not path.exists():
        return None
    try:
        found = layout.header_from(opened(path)[0])
    except FormatError:
        return None
    return found if found.same_data(header) else None


def _coded(
    header: layout.Header, parts: Arrays, size: int, level: int
) -> tuple[layout.Header, list[bytes]]:
    """A shard's header with what came of coding it, and its blocks."""
    columns, arrays = [], []
    for one, part in zip(header.arrays, parts, strict=True):
        name = one.filter or _filter(part, level)
        coded = []
        for at in range(0, len(part), size):
            data = coding.encoded(part[at : at + size], name, level)
            assert data is not None, "the whole shard was tried"
            coded.append(data)
        columns.append(coded)
        arrays.append(
            _measured(dataclasses.replace(one, filter=name), part, coded, size)
        )
    blocks = []
    for at, column in enumerate(zip(*columns, strict=True)):
        block = io.BytesIO()
        block.write(struct.pack("<Q", len(parts[0][at * size : (at + 1) * size])))
        for data in column:
            block.write(struct.pack("<Q", len(data)) + data)
        blocks.append(block.getvalue())
    return dataclasses.replace(header, arrays=tuple(arrays)), blocks


def _filter(part: np.ndarray, level: int) -> str:
    """The reversible filter that makes the first examples smallest."""
    sizes = {}
    for name in coding.filters(part):
        made = coding.encoded(part[:_TRIED], name, level)
        if made is not None:
            sizes[name] = len(made)
    return min(sizes, key=lambda name: sizes[name])


def _measured(
    one: layout.Array, part: np.ndarray, coded: list[bytes], size: int
) -> layout.Array:
    """What is read back of a part: its digest, and the errors of a lossy coding."""
    if not coding.is_lossy(one.filter):
        return dataclasses.replace(one, digest=one.source, source="")
    read = np.empty_like(part)
    for i, data in enumerate(coded):
        rows = slice(i * size, (i + 1) * size)
        shape = (len(part[rows]), *one.shape)
        read[rows] = coding.decoded(data, one.filter, one.dtype, shape)
    error = np.abs(read.astype("float64") - part.astype("float64"))
    return dataclasses.replace(
        one,
        digest=layout.digest(read),
        largest_error=float(error.max()),
        mean_square=float(np.square(error).mean()),
    )
