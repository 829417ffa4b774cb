"""What is written: arrays in memory, or a `tf.data.Dataset`, a part at a time."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_dlopt.data.shards import layout
from keras_dlopt.data.shards.coding import KINDS
from keras_dlopt.errors import DataError

Arrays = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class DataToWrite:
    """A data set to write.

    Attributes:
        examples: how many.
        structure: of an example, as `described` writes it.
        first: the arrays of a first few examples.
        parts: a function of a number of examples that yields so many at a time.
    """

    examples: int
    structure: Any
    first: Arrays
    parts: Callable[[int], Iterator[Arrays]]


def given(data: Any, block: int) -> DataToWrite:
    """A data set of arrays of one length, or of batches.

    Args:
        data: arrays in any structure, or a `tf.data.Dataset` of batches that ends and
            gives the same ones each time.
        block: how many examples of its beginning are asked for.

    Raises:
        DataError: for arrays of several lengths, none at all, or of texts or objects.
    """
    if hasattr(data, "element_spec"):
        return _of_batches(data, block)
    arrays = _checked(layout.flat(data))

    def parts(size: int) -> Iterator[Arrays]:
        for at in range(0, len(arrays[0]), size):
            yield [one[at : at + size] for one in arrays]

    first = [one[:block] for one in arrays]
    return DataToWrite(len(arrays[0]), layout.described(data), first, parts)


def _checked(values: list[Any]) -> Arrays:
    arrays = [np.asarray(one) for one in values]
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


def _of_batches(data: Any, block: int) -> DataToWrite:
    import tensorflow as tf

    if int(data.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise DataError(
            "A data set to write must end, and this one repeats for ever. Take a part "
            "of it with .take(batches)."
        )
    first = next(_pieces(data, block), None)
    if first is None:
        raise DataError("A data set to write must have a batch or more.")
    examples = sum(len(part[0]) for part in _pieces(data, 1 << 16))
    structure = layout.described(data.element_spec)

    def parts(size: int) -> Iterator[Arrays]:
        seen = 0
        for part in _pieces(data, size):
            seen += len(part[0])
            yield part
        if seen != examples:
            raise DataError(
                f"The data set gave {examples} examples first, and {seen} when it was "
                "read again. Give one that is the same each time."
            )

    return DataToWrite(examples, structure, first, parts)


def _pieces(data: Any, size: int) -> Iterator[Arrays]:
    """The examples of batches, `size` at a time."""
    held: list[Arrays] = []
    count = 0
    for batch in data.as_numpy_iterator():
        arrays = _checked(layout.flat(batch))
        kinds = [[(one.dtype, one.shape[1:]) for one in a] for a in (arrays, *held[:1])]
        if kinds[0] != kinds[-1]:
            raise DataError(
                f"The examples of a data set must be alike. Received {kinds[0]} after "
                f"{kinds[-1]}. Make them so, as keras.layers.Resizing does with images."
            )
        held.append(arrays)
        count += len(arrays[0])
        while count >= size:
            whole = [np.concatenate(column) for column in zip(*held, strict=True)]
            yield [one[:size] for one in whole]
            held, count = [[one[size:] for one in whole]], count - size
    if count:
        yield [np.concatenate(column) for column in zip(*held, strict=True)]
