"""What every coder of the package offers: cost, write, read.

There are coders of three contents. Coders of *symbols*, integers from 0 on, are the
entropy coders, listed in `symbols.py`. Coders of *positions*, rising integers, are
`Gaps`. Coders of *values*, of which `tensor.py` makes the table, write the elements of
an array; those of codebooks and grids hand their symbols to each coder of symbols.
"""

import dataclasses
from typing import Any, ClassVar, Protocol

import numpy as np

from keras_dlopt.codecs.bits import BitReader
from keras_dlopt.codecs.reader import Reader, varint
from keras_dlopt.codecs.speed import compiled


class SymbolCoder(Protocol):
    """Writes many symbols in few bits; how many there are is kept by the caller."""

    @property
    def name(self) -> str:
        """Its name in accounts and configs."""

    def cost(self, counts: np.ndarray) -> int:
        """Bits of the stream of symbols that occur so often, without writing it.

        Exact for codes of whole bits, else an estimate to 0.05 % and 16 bytes.
        """

    def write(self, symbols: np.ndarray) -> bytes:
        """The stream, with all that is needed to read it."""

    def read(
        self, reader: Reader, count: int, what: str, *, kind: str = "values"
    ) -> np.ndarray:
        """The next `count` symbols of `reader`.

        Args:
            reader: stands at the beginning of the stream.
            count: number of symbols, already checked against the reader's allowance.
            what: names the stream in errors.
            kind: the account of the codes (the table's is `"tables"`).

        Raises:
            FormatError: for whatever is damaged, and nothing else.
        """


@dataclasses.dataclass(frozen=True)
class Values:
    """The elements to be written: all of an array, or those at some positions.

    Attributes:
        bits: their bit patterns.
        unique: the distinct patterns, rising; empty if there are too many to list.
        index: where each element finds its own in `unique`.
        dtype: what the patterns stand for.
        places: the positions; None for all elements.
        codes: the codes, where the elements lie on a grid.
        scale: record of the scale of that grid.
        shape: of the array.
        cache: what a coder found out in `cost` and needs in `write`, by its name.
    """

    bits: np.ndarray
    unique: np.ndarray
    index: np.ndarray
    dtype: np.dtype
    places: np.ndarray | None = None
    codes: np.ndarray | None = None
    scale: bytes = b""
    shape: tuple[int, ...] = ()
    cache: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def constant(self) -> bool:
        """Whether all elements are the same."""
        return self.unique.size == 1


class ValueCoder(Protocol):
    """Writes the elements of an array; see `Values`."""

    name: ClassVar[str]

    def cost(self, values: Values) -> int | None:
        """Bytes that `write` takes, as exact as its symbols' coder, if it can."""

    def write(self, values: Values) -> bytes:
        """The elements, where `cost` is not None."""

    def read(
        self, reader: Reader, count: int, dtype: np.dtype, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The next `count` elements of an array; its bytes are already reserved.

        Returns:
            Bit patterns and None, or codes and their scale.

        Raises:
            FormatError: for whatever is damaged, and nothing else.
        """


class Recorded:
    """Base of coders whose size only writing tells: what is written is kept."""

    name: ClassVar[str]

    def kept(self, values: Values, record: bytes) -> int:
        """Bytes of a record, which `write` gives."""
        values.cache[self.name] = record
        return len(record)

    def write(self, values: Values) -> bytes:
        """The elements, where `cost` is not None."""
        return bytes(values.cache[self.name])


class Codec:
    """Base of the codecs that stand alone: frozen dataclasses with a name."""

    name: ClassVar[str]

    def config(self) -> dict[str, Any]:
        """What `codecs.get` needs to build this codec again."""
        return {"codec": self.name, **dataclasses.asdict(self)}  # type: ignore[call-overload]


class EntropyCodec(Codec):
    """Base of the coders of symbols: a table of the used ones, then their codes.

    A coder has `_bits`, `_written`, `_table` and `_codes`. A single distinct symbol
    costs no bits beyond the table.
    """

    def cost(self, counts: Any) -> int:
        """Bits of the stream of symbols that occur so often; see `SymbolCoder`."""
        counts = np.asarray(counts, np.int64)
        return self._bits(counts) if counts.any() else 0

    def write(self, symbols: np.ndarray) -> bytes:
        """The stream."""
        return self._written(symbols, counted(symbols)) if symbols.size else b""

    def read(
        self, reader: Reader, count: int, what: str, *, kind: str = "values"
    ) -> np.ndarray:
        """The next `count` symbols."""
        if count == 0:
            return np.zeros(0, np.uint16)
        reader.check_temporary(8 * count, what)
        bits = BitReader(reader.data, start=reader.position)
        begin = bits.position
        symbols, table = self._table(bits)
        table_bits = bits.position - begin
        if symbols.size == 1:
            decoded = np.full(count, symbols[0], least_type(int(symbols[0])))
            reader.position = bits.finish()
        else:
            decoded = self._codes(reader, bits, count, table, what)
        reader.account(kind, table_bits=table_bits)
        return decoded

    def encode(self, symbols: Any) -> bytes:
        """The number of symbols, then the stream."""
        symbols = np.asarray(symbols, np.int64).reshape(-1)
        return varint(symbols.size) + self.write(symbols)

    def decode(self, data: bytes, *, max_bytes: int = 2**31) -> np.ndarray:
        """The symbols, as a flat array."""
        reader = Reader(data, max_bytes=max_bytes)
        count = reader.varint("the number of symbols")
        reader.reserve(8 * count, "the symbols")
        return self.read(reader, count, "the symbols")

    def _bits(self, counts: np.ndarray) -> int:
        """The cost of one symbol or more."""
        raise NotImplementedError

    def _written(self, symbols: np.ndarray, counts: np.ndarray) -> bytes:
        """The stream of one symbol or more, which occur so often."""
        raise NotImplementedError

    def _table(self, bits: BitReader) -> tuple[np.ndarray, Any]:
        """The used symbols, and what `_codes` needs to know."""
        raise NotImplementedError

    def _codes(
        self, reader: Reader, bits: BitReader, count: int, table: Any, what: str
    ) -> np.ndarray:
        """The symbols after the table, where there are two or more different ones.

        `bits` stands after the table; `reader` has to be set after the stream.
        """
        raise NotImplementedError


def counted(symbols: np.ndarray) -> np.ndarray:
    """How often each integer from 0 to the largest occurs."""
    loops = compiled(symbols.size)
    if loops is None:
        return np.bincount(symbols)
    counts: np.ndarray = loops.count(symbols, int(symbols.max()) + 1)
    return counts


def whole_bytes(bits: int) -> int:
    """Bytes that hold so many bits."""
    return (bits + 7) // 8


def least_type(last: int) -> Any:
    """The least unsigned type of NumPy that holds `last`.

    >>> least_type(300).__name__
    'uint16'
    """
    return np.uint8 if last < 2**8 else np.uint16 if last < 2**16 else np.uint32
