"""Positions of the non-zeros of a sparse array, as the zeros between them.

A gap of g zeros before a non-zero is the symbol g if g < limit; each whole `limit` of
zeros before that is the escape symbol `limit` on its own. Zeros after the last
non-zero are not coded.
"""

import dataclasses
from typing import Any

import numpy as np

from keras_dlopt.codecs.coder import Codec, whole_bytes
from keras_dlopt.codecs.entropy import entropy_bits
from keras_dlopt.codecs.reader import REPAIR, Reader, varint
from keras_dlopt.codecs.speed import compiled
from keras_dlopt.codecs.symbols import CODERS, FIRST, cheapest
from keras_dlopt.errors import ConfigError, FormatError

LIMITS = tuple(2**k for k in range(1, 13))
MANY = 2**16  # a gap that large is no index into counts
TABLE_BITS = 6  # about what a symbol takes in a table
WORK = 1 / 768  # bits that a symbol to be decoded is worth in time,
FREE = 2**16  # beyond the first ones


def to_symbols(positions: np.ndarray, limit: int) -> np.ndarray:
    """Gap symbols of strictly rising positions.

    >>> to_symbols(np.array([0, 1, 9]), 4).tolist()
    [0, 0, 4, 3]
    """
    gaps = _gaps(positions)
    loops = compiled(gaps.size)
    if loops is not None:
        symbols = np.empty(gaps.size + int((gaps // limit).sum()), np.uint16)
        loops.gap_symbols(gaps, limit, symbols)
        return symbols
    escapes, rest = np.divmod(gaps, limit)
    symbols = np.full(int(escapes.sum()) + rest.size, limit, np.int64)
    symbols[np.cumsum(escapes + 1) - 1] = rest
    return symbols


def to_positions(symbols: np.ndarray, limit: int) -> np.ndarray:
    """The inverse of `to_symbols`."""
    loops = compiled(symbols.size)
    if loops is not None:
        places = np.empty(symbols.size, np.int64)
        return places[: loops.positions(symbols, limit, places)]
    stops = symbols != limit
    ends: np.ndarray = symbols.astype(np.int64)
    ends += stops
    np.cumsum(ends, out=ends)
    ends = ends[stops]
    ends -= 1
    return ends


def _counted(gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different gaps, and how often each occurs."""
    if gaps.max(initial=0) >= MANY:
        return np.unique(gaps, return_counts=True)
    counts = np.bincount(gaps, minlength=1)
    return np.arange(counts.size), counts


def _folded(gaps: np.ndarray, counts: np.ndarray, limit: int) -> np.ndarray:
    """How often each symbol occurs, out of how often each gap does."""
    found = np.bincount(gaps % limit, counts, limit + 1).astype(np.int64)
    found[limit] = int((gaps // limit * counts).sum())
    return found


def _gaps(positions: np.ndarray) -> np.ndarray:
    return np.diff(positions, prepend=-1) - 1


@dataclasses.dataclass(frozen=True)
class Gaps(Codec):
    """Sparse positions as entropy-coded gaps.

    Args:
        limit: gaps up to `limit - 1` have a symbol; a power of two up to 32768, or
            `None` to choose the best up to 4096 for each input.

    >>> data = Gaps().encode([2, 5, 40])
    >>> Gaps().decode(data, size=64).tolist()
    [2, 5, 40]
    """

    name = "gaps"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit not in [2**k for k in range(16)]:
            raise ConfigError(
                "limit must be None or a power of two up to 32768. "
                f"Received: {self.limit!r}."
            )

    def plan(self, positions: np.ndarray, *, version: int = 3) -> tuple[int, int, int]:
        """The cheapest coder and limit, and the bytes they take.

        Args:
            positions: they rise strictly.
            version: of the format; before 3 there is one coder.
        """
        return self._thorough(positions) if version < 3 else self._quick(positions)

    def cost(self, positions: np.ndarray) -> int:
        """Bytes that `write` takes, as exact as the coder of the symbols."""
        return self.plan(positions)[2]

    def write(
        self, positions: np.ndarray, plan: tuple[int, int, int] | None = None
    ) -> bytes:
        """Coder and log2 of the limit, number of symbols, their stream."""
        number, limit, _ = plan or self.plan(positions)
        symbols = to_symbols(positions, limit)
        head = bytes([number << 4 | limit.bit_length() - 1]) + varint(symbols.size)
        return head + CODERS[number].write(symbols)

    def read(self, reader: Reader, size: int) -> np.ndarray:
        """Strictly rising positions in an array of `size` elements.

        Raises:
            FormatError: if there are more than `size`, or one lies outside.
        """
        first = reader.take(1, "the gap limit")[0]
        number, log_limit = divmod(first, 16)
        count = reader.varint("the number of gaps")
        if number >= len(CODERS) or count > size:
            raise FormatError(
                f"The file is damaged: {count} gaps of limit 2**{first} for an array "
                f"of {size} elements. {REPAIR}"
            )
        reader.account("header")
        symbols = CODERS[number].read(reader, count, "the gaps", kind="positions")
        limit = 2**log_limit
        if count and (symbols.max() > limit or symbols[-1] == limit):
            raise FormatError(
                f"The file is damaged: a gap above its limit {limit}, or an escape at "
                f"the end. {REPAIR}"
            )
        positions = to_positions(symbols, limit)
        if count and positions[-1] >= size:
            raise FormatError(
                f"The file is damaged: position {positions[-1]} in an array of {size} "
                f"elements. {REPAIR}"
            )
        return positions

    def encode(self, positions: Any) -> bytes:
        """The positions, which must rise strictly from 0 or more."""
        positions = np.asarray(positions, np.int64).reshape(-1)
        if (_gaps(positions) < 0).any():
            raise ConfigError(
                "positions must be non-negative and rise strictly. Received: "
                f"{positions[:8].tolist()} ... Pass np.flatnonzero(mask)."
            )
        return self.write(positions)

    def decode(self, data: bytes, *, size: int) -> np.ndarray:
        """The positions, in an array of `size` elements."""
        return self.read(Reader(data, max_bytes=8 * size + 8), size)

    def _quick(self, positions: np.ndarray) -> tuple[int, int, int]:
        """The limit by entropy; then the coder."""
        gaps, offers = _gaps(positions), []
        every = _counted(gaps)
        for limit in (self.limit,) if self.limit else LIMITS:
            counts = _folded(*every, limit)
            bits = entropy_bits(counts) + TABLE_BITS * np.count_nonzero(counts)
            # Escapes are all but free, and yet each is a symbol.
            bits += WORK * max(int(counts.sum()) - FREE, 0)
            offers.append((bits, limit, counts))
            if counts[limit] == 0:
                break
        _, limit, counts = min(offers, key=lambda offer: offer[0])
        size = 1 + len(varint(int(counts.sum())))
        number, least = cheapest(counts)
        return number, limit, size + whole_bytes(least)

    def _thorough(self, positions: np.ndarray) -> tuple[int, int, int]:
        """Every limit with the coders of versions 1 and 2, exactly."""
        gaps, offers = _gaps(positions), []
        for limit in (self.limit,) if self.limit else LIMITS:
            escapes, rest = np.divmod(gaps, limit)
            counts = np.bincount(rest, minlength=limit + 1)
            counts[limit] = escapes.sum()
            size = 1 + len(varint(int(counts.sum())))
            for number, coder in enumerate(CODERS[:FIRST]):
                bits = coder.cost(counts)
                offers.append((bits, number, limit, size + whole_bytes(bits)))
            if counts[limit] == 0:
                break
        _, *best = min(offers, key=lambda offer: offer[0])
        return best[0], best[1], best[2]
