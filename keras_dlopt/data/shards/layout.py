"""How a data set lies in files: TFRecord shards, each with a header of its own.

The first record of a shard is JSON: format, version, number of the shard and how many
there are, number of examples, the structure of an example, and for each of its arrays
the type, shape, filter, and the SHA-256 of its bytes in this shard, before and after a
coding with loss, with the errors of that. Each further record
is a block of examples: the number of examples, then for each array its length and its
bytes, all numbers little-endian of 64 bits. TFRecord adds a CRC to each record.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_dlopt.data.shards import coding
from keras_dlopt.errors import FormatError
from keras_dlopt.files import parse_json

FORMAT, VERSION = "keras_dlopt shards", 1
PATTERN = "shard-{:05d}-of-{:05d}.tfrecord"


@dataclasses.dataclass(frozen=True)
class Array:
    """One of the arrays of an example.

    Attributes:
        dtype: NumPy's name of its type.
        shape: of one example.
        filter: how it is coded.
        digest: SHA-256 of its bytes in this shard as they are read, in hexadecimal.
        source: the same of what was given to be written, where that is other.
        largest_error: of a coding with loss, in units of the array.
        mean_square: of the errors.
    """

    dtype: str
    shape: tuple[int, ...]
    filter: str
    digest: str = ""
    source: str = ""
    largest_error: float = 0.0
    mean_square: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """What the header says of it: all but what is as it is without loss."""
        found = dataclasses.asdict(self)
        return {k: v for k, v in found.items() if v or k in ("shape", "digest")}

    def same_data(self, other: "Array") -> bool:
        """Whether the same numbers were given, and the same coding was asked for."""
        keys = [
            (
                one.dtype,
                one.shape,
                one.source or one.digest,
                one.filter if coding.is_coding(one.filter) else "",
            )
            for one in (self, other)
        ]
        return keys[0] == keys[1]


@dataclasses.dataclass(frozen=True)
class Header:
    """What the first record of a shard says."""

    shard: int
    shards: int
    examples: int
    structure: Any
    arrays: tuple[Array, ...]

    def to_json(self) -> bytes:
        """The record."""
        head = {"format": FORMAT, "version": VERSION}
        arrays = [one.to_dict() for one in self.arrays]
        return json.dumps(head | vars(self) | {"arrays": arrays}).encode()

    def kind(self) -> Any:
        """Structure, types and shapes of an example."""
        return self.structure, [(one.dtype, one.shape) for one in self.arrays]

    def same_data(self, other: "Header") -> bool:
        """Whether two shards hold the same numbers in the same order."""
        return (
            self.structure == other.structure
            and (self.examples, self.shard, self.shards)
            == (other.examples, other.shard, other.shards)
            and len(self.arrays) == len(other.arrays)
            and all(map(Array.same_data, self.arrays, other.arrays))
        )

    def block(self, record: bytes) -> list[np.ndarray]:
        """The arrays of a block.

        Raises:
            FormatError: for a block that does not fit this header.
        """
        count, at, arrays = _number(record, 0), 8, []
        if not 0 < count <= self.examples:
            raise FormatError(f"a block has {count} of {self.examples} examples")
        for one in self.arrays:
            length = _number(record, at)
            data = record[at + 8 : at + 8 + length]
            shape = (count, *one.shape)
            if math.prod(shape) * np.dtype(one.dtype).itemsize > coding.MAX_BLOCK_BYTES:
                raise FormatError(f"a block asks for an array of the shape {shape}")
            arrays.append(coding.decoded(data, one.filter, one.dtype, shape))
            at += 8 + length
        if at != len(record):
            raise FormatError("a block is longer or shorter than it says")
        return arrays


def _number(record: bytes, at: int) -> int:
    if len(record) < at + 8:
        raise FormatError("a block ends too early")
    return int(struct.unpack_from("<Q", record, at)[0])


def header_from(record: bytes) -> Header:
    """The header that a first record holds.

    Raises:
        FormatError: for anything else.
    """
    try:
        given = parse_json(record)
        if given.pop("format") != FORMAT or given.pop("version") != VERSION:
            raise ValueError("it is of another format or version")
        arrays = tuple(
            Array(**one | {"shape": tuple(one["shape"])}) for one in given.pop("arrays")
        )
        made = Header(arrays=arrays, **given)
        _check(made)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError(f"its first record is no header of a shard: {error}") from (
            error
        )
    return made


def _check(header: Header) -> None:
    for one in header.arrays:
        dtype = np.dtype(one.dtype)
        if dtype.kind not in coding.KINDS or not _known(one.filter):
            raise ValueError(f"it has an array of {one.dtype!r}, {one.filter!r}")
        if not all(type(n) is int and n >= 0 for n in one.shape):
            raise ValueError(f"it has an array of the shape {one.shape}")
        if coding.is_coding(one.filter) and not coding.suits(
            one.filter, dtype, one.shape
        ):
            raise ValueError(f"it has {one.filter!r} of {one.dtype}, {one.shape}")
    for number in (header.shard, header.shards, header.examples):
        if type(number) is not int or number < 0:
            raise ValueError(f"it counts {number!r}")
    if count_of(header.structure) != len(header.arrays):
        raise ValueError("its structure has another number of arrays")


def _known(name: Any) -> bool:
    return name in coding.FILTERS or coding.is_coding(name)


def described(structure: Any) -> Any:
    """The structure of an example as JSON: lists, dicts, and 0 for each array."""
    if isinstance(structure, dict):
        return {"dict": {k: described(v) for k, v in sorted(structure.items())}}
    if isinstance(structure, list | tuple):
        return {"tuple": [described(v) for v in structure]}
    return 0


def count_of(structure: Any) -> int:
    """How many arrays a described structure has."""
    if structure == 0:
        return 1
    (kind, inside), *more = structure.items()
    if more or kind not in ("dict", "tuple"):
        raise ValueError("its structure is neither tuple nor dict")
    return sum(count_of(v) for v in (inside.values() if kind == "dict" else inside))


def packed(structure: Any, arrays: Sequence[Any]) -> Any:
    """Arrays in the structure that `described` wrote."""
    left = list(arrays)

    def build(part: Any) -> Any:
        if part == 0:
            return left.pop(0)
        if "dict" in part:
            return {k: build(v) for k, v in part["dict"].items()}
        return tuple(build(v) for v in part["tuple"])

    return build(structure)


def flat(structure: Any) -> list[Any]:
    """The arrays of an example, in the order of `described`."""
    return list(keras.tree.flatten(structure))


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def path_of(folder: pathlib.Path, shard: int, shards: int) -> pathlib.Path:
    """The file of a shard."""
    return folder / PATTERN.format(shard, shards)
