"""Reads compressed shards as a `tf.data.Dataset`."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from keras_dlopt import checks
from keras_dlopt.data.shards import layout
from keras_dlopt.data.shards.records import at
from keras_dlopt.data.shards.whole import StoredBlock, opened_ones
from keras_dlopt.errors import FormatError

_MIXED = 4  # blocks whose examples are mixed


def read_shards(
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 128,
    shuffle: bool = False,
    seed: int = 0,
    drop_remainder: bool = False,
    damaged: Literal["raise", "skip"] = "raise",
    cache: bool | str | os.PathLike[str] = False,
) -> Any:
    """A `tf.data.Dataset` of batches from what `write_shards` wrote.

    Blocks are decoded in parallel; order and numbers are those that were written.
    Checksums are tried as blocks are read.

    Args:
        folder: of the shards.
        batch_size: examples per batch.
        shuffle: a new order each epoch, of the blocks and of the examples within four.
        seed: of the order.
        drop_remainder: leave out a last, smaller batch.
        damaged: `"skip"` leaves out shards that are not whole, each named in a warning
            with the examples that are lost; `"raise"` refuses them.
        cache: keep decoded blocks, True in memory, a path on disk, as
            `tf.data.Dataset.cache` does: where decoding costs more than the memory, as
            pictures do.

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
    seed = checks.seed(seed)
    checks.choice(damaged, name="damaged", choices=("raise", "skip"))
    header, blocks = opened_ones(pathlib.Path(folder), skip=damaged == "skip")
    decode = _decoder(header, blocks)
    types = [np.dtype(one.dtype) for one in header.arrays]

    def block(number: Any) -> Any:
        made = tf.numpy_function(decode, [number], types, stateful=False)
        for one, array in zip(made, header.arrays, strict=True):
            one.set_shape((None, *array.shape))
        return layout.packed(header.structure, made)

    data = tf.data.Dataset.range(len(blocks))
    if shuffle and not cache:
        data = data.shuffle(len(blocks), seed=seed)
    data = data.map(
        block, num_parallel_calls=min(os.cpu_count() or 1, 8), deterministic=True
    )
    if cache:
        data = data.cache("" if cache is True else os.fspath(cache))
        data = data.shuffle(len(blocks), seed=seed) if shuffle else data
    if shuffle:
        data = _mixed(data, _MIXED * max(one.examples for one in blocks), seed)
    data = data.rebatch(batch_size, drop_remainder=drop_remainder)
    examples = sum(one.examples for one in blocks)
    count = examples // batch_size if drop_remainder else -(-examples // batch_size)
    data = data.apply(tf.data.experimental.assert_cardinality(count)).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


def _decoder(
    header: layout.Header, blocks: list[StoredBlock]
) -> Callable[[Any], tuple[np.ndarray, ...]]:
    """The arrays of a block by its number, with the file named where it is damaged."""

    def decode(number: Any) -> tuple[np.ndarray, ...]:
        one = blocks[number]
        try:
            own = dataclasses.replace(header, arrays=one.arrays, examples=one.examples)
            return tuple(own.block(at(one.path, one.offset, one.length)))
        except (FormatError, OSError) as error:
            raise FormatError(f"{one.path} is damaged: {error}.") from error

    return decode


def _mixed(data: Any, examples: int, seed: int) -> Any:
    """Each so many examples in an order that is drawn anew in each epoch."""
    import tensorflow as tf

    def mix(block: Any, drawn: Any) -> Any:
        count = tf.shape(tf.nest.flatten(block)[0])[0]
        order = tf.random.experimental.stateless_shuffle(
            tf.range(count), seed=[seed, drawn]
        )
        return tf.nest.map_structure(lambda one: tf.gather(one, order), block)

    drawn = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    return tf.data.Dataset.zip(data.rebatch(examples), drawn).map(mix)
