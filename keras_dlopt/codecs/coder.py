"""What every coder of the package offers: cost, write, read.

There are coders of three contents. Coders of *symbols*, integers from 0 on, are the
entropy coders, listed in `symbols.py`. Coders of *positions*, rising integers, are
`Gaps`. Coders of *values*, of which `tensor.py` makes the table, write the elements of
an array; those of codebooks and grids hand their symbols to each coder of symbols.
"""

import dataclasses
from typing import Any, ClassVar, Protocol

import numpy as np

from keras_dlopt.codecs.reader import Reader
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


class Codec:
    """Base of the codecs that stand alone: frozen dataclasses with a name."""

    name: ClassVar[str]

    def config(self) -> dict[str, Any]:
        """What `codecs.get` needs to build this codec again."""
        return {"codec": self.name, **dataclasses.asdict(self)}  # type: ignore[call-overload]


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
