"""Reads compressed shards as a `tf.data.Dataset`."""

import os
import pathlib
import re
import warnings
from typing import Any, Literal

import numpy as np

from keras_dlopt import checks
from keras_dlopt.data.shards import layout
from keras_dlopt.data.shards.records import first_record, records_of
from keras_dlopt.errors import DataError, FormatError

_NAME = re.compile(r"shard-(\d{5,})-of-(\d{5,})\.tfrecord")


def read_shards(
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 128,
    shuffle: bool = False,
    seed: int = 0,
    drop_remainder: bool = False,
    damaged: Literal["raise", "skip"] = "raise",
) -> Any:
    """A `tf.data.Dataset` of batches from what `write_shards` wrote.

    Blocks are decoded in parallel; order and numbers are those that were written.
    Checksums are tried as blocks are read.

    Args:
        folder: of the shards.
        batch_size: examples per batch.
        shuffle: a new order each epoch, of the shards and within four blocks.
        seed: of the order.
        drop_remainder: leave out a last, smaller batch.
        damaged: `"skip"` leaves out shards that are not whole, each named in a warning
            with the examples that are lost; `"raise"` refuses them.

    Raises:
        DataError: for a folder without shards, or with some missing.
        FormatError: for a damaged shard, named, if those are not skipped. What comes to
            light while blocks are read ends the iteration in TensorFlow's error.

    Example:
        >>> import tempfile
        >>> from keras_dlopt.data import write_shards
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_shards({"x": np.arange(6.0), "y": np.arange(6)}, folder)
        ...     [b["y"].numpy().tolist() for b in read_shards(folder, batch_size=4)]
        [[0, 1, 2, 3], [4, 5]]
    """
    import tensorflow as tf

    batch_size = checks.count(batch_size, name="batch_size")
    checks.choice(damaged, name="damaged", choices=("raise", "skip"))
    paths = _whole_ones(pathlib.Path(folder), skip=damaged == "skip")
    headers = {path: layout.header_from(first_record(path)) for path in paths}
    first = _of_one_set(headers)
    files = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    if shuffle:
        files = files.shuffle(len(paths), seed=seed)
    by_path = {str(path): header for path, header in headers.items()}

    def decode(path: Any, record: Any) -> tuple[np.ndarray, ...]:
        name = path.decode()
        try:
            return tuple(by_path[name].block(record))
        except FormatError as error:
            raise FormatError(f"{name} is damaged: {error}.") from error

    def block(path: Any, record: Any) -> Any:
        types = [tf.dtypes.as_dtype(np.dtype(one.dtype)) for one in first.arrays]
        made = tf.numpy_function(decode, [path, record], types)
        for one, array in zip(made, first.arrays, strict=True):
            one.set_shape((None, *array.shape))
        return tuple(made)

    def blocks(path: Any) -> Any:
        records = tf.data.TFRecordDataset(path).skip(1)
        return records.map(lambda record: (path, record))

    data = files.flat_map(blocks).map(
        block, num_parallel_calls=min(os.cpu_count() or 1, 8), deterministic=True
    )
    if shuffle:
        largest = 4 * _largest_block(paths[0], first)
        data = data.unbatch().shuffle(largest, seed=seed)
        data = data.batch(batch_size, drop_remainder=drop_remainder)
    else:
        data = data.rebatch(batch_size, drop_remainder=drop_remainder)
    examples = sum(header.examples for header in headers.values())
    count = examples // batch_size if drop_remainder else -(-examples // batch_size)
    data = data.map(lambda *arrays: layout.packed(first.structure, arrays))
    data = data.apply(tf.data.experimental.assert_cardinality(count)).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


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


def _largest_block(path: pathlib.Path, header: layout.Header) -> int:
    records = records_of(path)
    next(records)
    return len(header.block(next(records))[0])


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
    return sum(_verified(path) for path in _whole_ones(pathlib.Path(folder)))


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


def _whole_ones(folder: pathlib.Path, *, skip: bool = False) -> list[pathlib.Path]:
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
    if not skip:
        return wanted
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
        warnings.warn(f"{reason} Its examples are left out.", stacklevel=3)
    if not kept:
        raise DataError(f"None of the {count} shards in {folder} is whole.")
    return kept
