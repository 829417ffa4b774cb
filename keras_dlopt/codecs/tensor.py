"""One array in the fewest bytes, exact to the last bit: the table of all methods."""

import dataclasses
from typing import Any

import numpy as np

from keras_dlopt.codecs.coder import Codec, ValueCoder
from keras_dlopt.codecs.codes import GridValues
from keras_dlopt.codecs.grid import detect, holds
from keras_dlopt.codecs.hints import Grid, Hint
from keras_dlopt.codecs.reader import Reader
from keras_dlopt.codecs.record import Decoded, Records
from keras_dlopt.codecs.symbols import CODERS
from keras_dlopt.codecs.values import (
    ConstantValues,
    IndexedValues,
    PlaneValues,
    RawValues,
)

# The kinds in the file (docs/format.md). Each entropy coder has two, 3 and 4 the first.
_PLAIN: dict[int, ValueCoder] = {
    0: RawValues(),
    2: ConstantValues(),
    **{3 + 2 * number: IndexedValues(coder) for number, coder in enumerate(CODERS)},
    1: PlaneValues(),
}
_SCALES = Records(_PLAIN)
_GRIDS: dict[int, ValueCoder] = {
    4 + 2 * number: GridValues(coder, lambda reader: _SCALES.decode(reader).array)
    for number, coder in enumerate(CODERS)
}
_TENSORS = Records(_PLAIN, _GRIDS)


def encode_tensor(array: Any, *, hint: Hint | None = None) -> bytes:
    """The shortest record for an array.

    Args:
        array: any dtype in `dtypes.NAMES`, at most 15 dimensions.
        hint: how the values were made; used only if it holds exactly.
    """
    array = np.asarray(array)
    given = isinstance(hint, Grid) and holds(hint, array)
    grid = hint if given else detect(array)
    if not isinstance(grid, Grid):
        return _TENSORS.encode(array, hint=hint)
    scale = _SCALES.encode(np.asarray(grid.scale))
    return _TENSORS.encode(array, hint=hint, codes=np.asarray(grid.codes), scale=scale)


def decode_tensor(reader: Reader) -> Decoded:
    """Reads one record.

    Raises:
        FormatError: if it is damaged or larger than the reader's allowance.
    """
    return _TENSORS.decode(reader)


@dataclasses.dataclass(frozen=True)
class Tensor(Codec):
    """The tensor codec with the interface of the others.

    >>> Tensor().decode(Tensor().encode([1.5, 0.0])).tolist()
    [1.5, 0.0]
    """

    name = "tensor"

    def encode(self, array: Any, *, hint: Hint | None = None) -> bytes:
        """The record of an array."""
        return encode_tensor(array, hint=hint)

    def decode(self, data: bytes, *, max_bytes: int = 2**31) -> np.ndarray:
        """The array of a record."""
        return decode_tensor(Reader(data, max_bytes=max_bytes)).array
