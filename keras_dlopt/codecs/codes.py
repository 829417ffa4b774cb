"""The coder of values on a grid: scale, lowest code, stream of the codes."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from keras_dlopt.codecs.coder import SymbolCoder, Values, counted, whole_bytes
from keras_dlopt.codecs.dtypes import elements, is_float
from keras_dlopt.codecs.reader import REPAIR, Reader, unzigzag, varint, zigzag
from keras_dlopt.errors import FormatError

MAX_CODE = 2**31


@dataclasses.dataclass(frozen=True)
class GridValues:
    """The codes of a grid.

    Args:
        coder: of the codes, the lowest one taken off.
        read_scale: reads the record of a scale.
    """

    name: ClassVar[str] = "grid"
    coder: SymbolCoder
    read_scale: Callable[[Reader], np.ndarray]

    def cost(self, values: Values) -> int | None:
        codes = values.codes
        if codes is None or max(-int(codes.min()), int(codes.max())) >= MAX_CODE:
            return None
        if self.name not in values.cache:
            values.cache[self.name] = counted(codes - codes.min())
        bits = self.coder.cost(values.cache[self.name])
        return len(_head(values, codes)) + whole_bytes(bits)

    def write(self, values: Values) -> bytes:
        assert values.codes is not None
        symbols = values.codes - values.codes.min()
        return _head(values, values.codes) + self.coder.write(symbols)

    def read(
        self, reader: Reader, count: int, dtype: np.dtype, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        scale = read_scale(reader, self.read_scale, dtype, shape)
        low = int(unzigzag(reader.varint("the lowest grid code")))
        if abs(low) > MAX_CODE:
            raise FormatError(
                f"The file is damaged: a grid of lowest code {low}. {REPAIR}"
            )
        reader.account("codebook")
        return _lifted(self.coder.read(reader, count, "the grid codes"), low), scale


def read_scale(
    reader: Reader,
    read_record: Callable[[Reader], np.ndarray],
    dtype: np.dtype,
    shape: tuple[int, ...],
) -> np.ndarray:
    """The scale of a grid, which must fit its array.

    Raises:
        FormatError: if it does not, or is damaged.
    """
    with reader.lump("codebook"):
        scale = read_record(reader)
    try:
        fits = np.broadcast_shapes(scale.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits or not is_float(dtype) or not is_float(scale.dtype):
        raise FormatError(
            f"The file is damaged: a grid of shape {shape} and dtype {dtype} with a "
            f"scale of shape {scale.shape} and dtype {scale.dtype}. {REPAIR}"
        )
    reader.check_temporary(8 * elements(shape), "a grid")
    return scale


def _lifted(symbols: np.ndarray, low: int) -> np.ndarray:
    """`symbols + low` in the smallest type that holds them."""
    high = low + int(symbols.max(initial=0))
    kind = np.result_type(np.min_scalar_type(low), np.min_scalar_type(high))
    lifted = symbols.astype(kind)  # whatever wraps around comes back
    lifted += np.array(low % 2 ** (8 * kind.itemsize), np.uint64).astype(kind)
    return lifted


def _head(values: Values, codes: np.ndarray) -> bytes:
    return values.scale + varint(int(zigzag(int(codes.min()))))
