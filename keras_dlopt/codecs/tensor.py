"""One array in the fewest bytes, exact to the last bit: the table of all methods."""

import dataclasses
from typing import Any

import numpy as np

from keras_dlopt.codecs.coder import Codec, ValueCoder
from keras_dlopt.codecs.codes import GridValues
from keras_dlopt.codecs.dtypes import dtype_of
from keras_dlopt.codecs.grid import detect, holds
from keras_dlopt.codecs.hints import Grid, Hint
from keras_dlopt.codecs.lattice import find_grid
from keras_dlopt.codecs.neighbours import NeighbourCodes, NeighbourIndices
from keras_dlopt.codecs.planes import ByteValues
from keras_dlopt.codecs.random_code import RandomCode
from keras_dlopt.codecs.reader import Reader
from keras_dlopt.codecs.record import SPARSE, Decoded, Records, read_head
from keras_dlopt.codecs.symbols import CODERS, FIRST
from keras_dlopt.codecs.values import (
    ConstantValues,
    IndexedValues,
    PlaneValues,
    RawValues,
)

BYTES = 64  # kind of the planes of bytes
NEWEST = 3  # version of the format that is written if nobody says otherwise
SINCE = {67: 6}  # version of the format with a kind of values that came later


def _plain(coders: int) -> dict[int, ValueCoder]:
    """Coders of values by their kinds in the file (docs/format.md).

    Each coder of symbols has two kinds, of which 3 and 4 are the first's.
    """
    choosy = coders > FIRST
    return {
        0: RawValues(),
        2: ConstantValues(),
        **{
            3 + 2 * number: IndexedValues(coder)
            for number, coder in enumerate(CODERS[:coders])
        },
        **({BYTES: ByteValues()} if choosy else {}),
        1: PlaneValues(choosy=choosy),
    }


def _records(coders: int, version: int) -> tuple[Records, Records]:
    """Writers and readers of scales, and of tensors."""
    plain = _plain(coders)
    scales = Records(plain, version=version)
    grids: dict[int, ValueCoder] = {
        4 + 2 * number: GridValues(coder, lambda reader: scales.decode(reader).array)
        for number, coder in enumerate(CODERS[:coders])
    }
    if version < NEWEST:
        return scales, Records(plain, grids, version=version)
    neighbours: dict[int, ValueCoder] = {
        65: NeighbourIndices(),
        66: NeighbourCodes(lambda reader: scales.decode(reader).array),
        67: RandomCode(lambda reader: scales.decode(reader).array),
    }
    return scales, Records(plain, grids, neighbours, version=version)


_OLD, _NEW = _records(FIRST, 1), _records(len(CODERS), NEWEST)


def encode_tensor(
    array: Any, *, hint: Hint | None = None, version: int = NEWEST
) -> bytes:
    """The shortest record for an array.

    Args:
        array: any dtype in `dtypes.NAMES`, at most 15 dimensions.
        hint: how the values were made; used only if it holds exactly. Without a grid
            one is looked for.
        version: of the format; 1 uses what every release can read.
    """
    array = np.asarray(array)
    given = isinstance(hint, Grid) and holds(hint, array)
    find = detect if version < NEWEST else find_grid
    grid = hint if given else find(array)
    scales, tensors = _OLD if version < NEWEST else _NEW
    if not isinstance(grid, Grid):
        return tensors.encode(array, hint=hint)
    scale = scales.encode(_narrow(np.asarray(grid.scale), version))
    return tensors.encode(array, hint=hint, codes=np.asarray(grid.codes), scale=scale)


@np.errstate(over="ignore", invalid="ignore")
def _narrow(scale: np.ndarray, version: int) -> np.ndarray:
    """A scale in 2 bytes where these hold it."""
    short = scale.astype(dtype_of("bfloat16"))
    exact = version >= NEWEST and np.array_equal(short.astype(scale.dtype), scale)
    return short if exact else scale


def least_version(record: bytes) -> int:
    """The version of the format that a record needs, 0 for what all after 2 have."""
    reader = Reader(record, max_bytes=2**63)
    read_head(reader)
    return SINCE.get(reader.take(1, "the method of a tensor")[0] & ~SPARSE, 0)


def decode_tensor(reader: Reader) -> Decoded:
    """Reads one record.

    Raises:
        FormatError: if it is damaged or larger than the reader's allowance.
    """
    return _NEW[1].decode(reader)


@dataclasses.dataclass(frozen=True)
class Tensor(Codec):
    """The tensor codec with the interface of the others.

    Args:
        version: of the format that is written; all are read.

    >>> Tensor().decode(Tensor().encode([1.5, 0.0])).tolist()
    [1.5, 0.0]
    """

    name = "tensor"
    version: int = NEWEST

    def encode(self, array: Any, *, hint: Hint | None = None) -> bytes:
        """The record of an array."""
        return encode_tensor(array, hint=hint, version=self.version)

    def decode(self, data: bytes, *, max_bytes: int = 2**31) -> np.ndarray:
        """The array of a record."""
        return decode_tensor(Reader(data, max_bytes=max_bytes)).array
