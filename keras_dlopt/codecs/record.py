"""The record of one array: head, method, and what the method's coder wrote.

Every layout (dense, or sparse with coded positions) is tried with every coder of
values, and the cheapest is written.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from keras_dlopt.codecs.coder import ValueCoder, Values
from keras_dlopt.codecs.distinct import distinct
from keras_dlopt.codecs.dtypes import (
    NAMES,
    dtype_of,
    elements,
    from_bits,
    number_of,
    to_bits,
)
from keras_dlopt.codecs.gaps import Gaps
from keras_dlopt.codecs.grid import rebuild
from keras_dlopt.codecs.hints import Hint
from keras_dlopt.codecs.reader import REPAIR, Reader, varint
from keras_dlopt.codecs.speed import compiled
from keras_dlopt.errors import ConfigError, FormatError

SPARSE = 0x80  # flag beside the kind of values
EMPTY = 0  # kind of the values of an array without elements
PLACES = Gaps()
DENSE = 0.6  # share of non-zeros from which on a sparse record is no use
WORK = 1 / 4096  # bytes that an element to be decoded is worth in time
LARGE = 2**16
PIECE = 2**18  # elements of a grid that are rebuilt at once


@dataclasses.dataclass(frozen=True)
class Decoded:
    """An array out of a file.

    Attributes:
        array: the values.
        method: such as `"raw"` or `"sparse codebook"`.
        symbols: flat integers that stand for the values: grid codes, else the bit
            patterns.
    """

    array: np.ndarray
    method: str
    symbols: np.ndarray


class Records:
    """Writes and reads records with some coders of values.

    Args:
        stages: coders by the kinds that stand for them in the file. Of two that take
            as many bytes the one of the earlier stage is chosen, then the dense one,
            then the earlier in its stage.
        version: of the format that is written.
    """

    def __init__(self, *stages: Mapping[int, ValueCoder], version: int = 3):
        self.stages, self.version = stages, version
        self.coders = {kind: coder for one in stages for kind, coder in one.items()}

    def encode(
        self,
        array: np.ndarray,
        *,
        hint: Hint | None = None,
        codes: np.ndarray | None = None,
        scale: bytes = b"",
    ) -> bytes:
        """The shortest record of an array.

        Args:
            array: any dtype in `dtypes.NAMES`, at most 15 dimensions.
            hint: a codebook is used if it holds exactly.
            codes: of the grid that the array lies on, if it does.
            scale: record of the scale of that grid.
        """
        if array.ndim > 15:
            raise ConfigError(
                "Arrays of up to 15 dimensions can be stored. Received: "
                f"{array.shape}. Reshape it first."
            )
        head = bytes([array.ndim << 4 | number_of(array.dtype)])
        head += b"".join(varint(size) for size in array.shape)
        if array.size == 0:
            return head + bytes([EMPTY])
        dense = 1.0 if self.version < 3 else DENSE
        layouts = _layouts(array, hint, codes, scale, dense)
        plans = [
            None if v.places is None else PLACES.plan(v.places, version=self.version)
            for v in layouts
        ]
        _, kind, at = min(self._offers(layouts, plans), key=lambda offer: offer[0])
        values, plan = layouts[at], plans[at]
        record = self.coders[kind].write(values)
        if values.places is None:
            return head + bytes([kind]) + record
        places = PLACES.write(values.places, plan)
        return head + bytes([SPARSE | kind]) + places + record

    def _offers(
        self, layouts: list[Values], plans: list[tuple[int, int, int] | None]
    ) -> Iterator[tuple[int, int, int]]:
        """Bytes, kind and layout of all that applies, in the order of preference."""
        for stage in self.stages:
            for at, (values, plan) in enumerate(zip(layouts, plans, strict=True)):
                places = plan[2] if plan else 0
                if self.version >= 3 and values.bits.size > LARGE:
                    # What takes longer to read must be smaller.
                    places += int(values.bits.size * WORK)
                for kind, coder in stage.items():
                    cost = coder.cost(values)
                    if cost is not None:
                        yield places + cost, kind, at

    def decode(self, reader: Reader) -> Decoded:
        """Reads one record.

        Raises:
            FormatError: if it is damaged or larger than the reader's allowance.
        """
        dtype, shape = read_head(reader)
        kind = reader.take(1, "the method of a tensor")[0]
        sparse, kind = bool(kind & SPARSE), kind & ~SPARSE
        if kind not in self.coders:
            raise FormatError(
                f"The file uses method {kind} for a tensor, which this version does "
                f"not know here. Update keras-dlopt, or: {REPAIR}"
            )
        reader.account("header")
        size = int(np.prod(shape, dtype=object)) if shape else 1
        if size == 0 and (sparse or kind != EMPTY):
            raise FormatError(
                f"The file is damaged: an empty tensor of shape {shape} with method "
                f"{kind}. {REPAIR}"
            )
        places = PLACES.read(reader, size) if sparse else None
        count = size if places is None else places.size
        coder = self.coders[kind]
        symbols, scale = coder.read(reader, count, dtype, shape)
        if places is not None:
            symbols = _spread(places, symbols, size)
        if scale is None:
            array = from_bits(symbols, dtype, shape)
        else:
            array = _rebuilt(symbols.reshape(shape), scale, dtype)
        method = "sparse " * sparse + coder.name
        return Decoded(array=array, method=method, symbols=symbols)


def _spread(places: np.ndarray, symbols: np.ndarray, size: int) -> np.ndarray:
    dense = np.zeros(size, symbols.dtype)
    loops = compiled(places.size)
    if loops is None:
        dense[places] = symbols
    else:
        loops.spread(places, symbols, dense)
    return dense


def _rebuilt(codes: np.ndarray, scale: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`grid.rebuild` in pieces, so that float64 is never there for all of them."""
    loops, tail = compiled(codes.size), scale.shape
    while tail and tail[0] == 1:
        tail = tail[1:]
    repeats = not tail or codes.shape[-len(tail) :] == tail
    if loops is not None and repeats and dtype.name in ("float32", "float64"):
        out = np.empty(codes.shape, dtype)
        wide = scale.reshape(-1).astype(np.float64)
        loops.rebuild(codes.reshape(-1), 0, wide, out.reshape(-1))
        return out
    if codes.size <= PIECE or codes.ndim == 0:
        return rebuild(codes, scale, dtype)
    scale = np.broadcast_to(scale, codes.shape)
    out = np.empty(codes.shape, dtype)
    axis = int(np.argmax(codes.shape))
    step = max(1, PIECE * codes.shape[axis] // codes.size)
    for start in range(0, codes.shape[axis], step):
        part = (*[slice(None)] * axis, slice(start, start + step))
        out[part] = rebuild(codes[part], scale[part], dtype)
    return out


def _layouts(
    array: np.ndarray,
    hint: Hint | None,
    codes: np.ndarray | None,
    scale: bytes,
    dense_from: float,
) -> list[Values]:
    """All elements, and where enough are zero bits, those that are not."""
    bits = to_bits(array)
    unique, index = distinct(bits, array, hint)
    if unique.size == 1:
        return [Values(bits, unique, index, array.dtype)]
    if codes is not None:
        codes = codes.reshape(-1)
    layouts = [
        Values(bits, unique, index, array.dtype, None, codes, scale, array.shape)
    ]
    if np.count_nonzero(bits) < dense_from * bits.size:
        nonzero = np.flatnonzero(bits)
        # Sparse leaves zeros out, so they must be exactly the codes 0.
        if codes is not None and np.array_equal(np.flatnonzero(codes), nonzero):
            codes = codes[nonzero]
        else:
            codes = None
        # The pattern 0 sorts first.
        some = bits[nonzero], unique[1:], index[nonzero] - 1 if unique.size else index
        layouts.append(Values(*some, array.dtype, nonzero, codes, scale))
    return layouts


def read_head(reader: Reader) -> tuple[np.dtype, tuple[int, ...]]:
    """Dtype and shape; the bytes of the array are taken off the allowance."""
    first = reader.take(1, "the header of a tensor")[0]
    rank, number = divmod(first, 16)
    if number >= len(NAMES):
        raise FormatError(
            f"The file uses dtype number {number}, which this version does not know. "
            f"Update keras-dlopt, or: {REPAIR}"
        )
    dtype = dtype_of(NAMES[number])
    shape = tuple(reader.varint("the shape of a tensor") for _ in range(rank))
    reader.reserve(elements(shape) * dtype.itemsize, f"a tensor of shape {shape}")
    return dtype, shape
