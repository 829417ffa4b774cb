"""Canonical Huffman coding with a length limit.

Lengths come from package-merge (Larmore and Hirschberg 1990, "A fast algorithm for
optimal length-limited Huffman codes"), which is optimal under the limit. Codes are
canonical: shorter codes first, equal lengths in the order of the symbols, each code
the previous one plus one. So the lengths alone are the table.
"""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_dlopt.codecs.bits import BitReader, BitWriter, windows
from keras_dlopt.codecs.coder import EntropyCodec, least_type
from keras_dlopt.codecs.huffman_table import MAX_LENGTH, read_lengths, write_lengths
from keras_dlopt.codecs.reader import REPAIR, Reader
from keras_dlopt.codecs.speed import compiled
from keras_dlopt.errors import ConfigError, FormatError

FAST_BITS = 12  # codes up to this length are found by one table look-up
CHUNK_BYTES = 1 << 14


def code_lengths(counts: npt.ArrayLike, *, limit: int = MAX_LENGTH) -> np.ndarray:
    """Optimal code lengths under a limit.

    Args:
        counts: occurrences of each symbol of the alphabet.
        limit: longest code in bits, 1 .. 24.

    Returns:
        One length per symbol; 0 for a symbol that does not occur, and for the only
        one that does.

    >>> code_lengths([5, 2, 1, 1, 0]).tolist()
    [1, 2, 3, 3, 0]
    """
    counts = np.asarray(counts, np.int64)
    used = np.flatnonzero(counts)
    if not 1 <= limit <= MAX_LENGTH or used.size > 2**limit:
        raise ConfigError(
            f"limit must be in [1, {MAX_LENGTH}] and 2**limit at least the number of "
            f"symbols in use. Received: limit={limit}, {used.size} symbols."
        )
    lengths = np.zeros(counts.size, np.uint8)
    if used.size < 2:
        return lengths
    order = used[np.argsort(counts[used], kind="stable")]
    coins = counts[order]
    # Level by level: pair up neighbours, merge the pairs with the coins.
    levels, merged = [np.ones(coins.size, bool)], coins
    for _ in range(limit - 1):
        even = merged[: merged.size // 2 * 2]
        both = np.concatenate([coins, even[::2] + even[1::2]])
        rank = np.argsort(both, kind="stable")
        merged = both[rank]
        levels.append(rank < coins.size)
    # Backwards: the first `take` items of a level; its packages open two items each.
    take = 2 * (coins.size - 1)
    for is_coin in reversed(levels):
        chosen = int(is_coin[:take].sum())
        lengths[order[:chosen]] += 1
        take = 2 * (take - chosen)
    return lengths


def canonical_codes(lengths: npt.ArrayLike) -> np.ndarray:
    """The code of every symbol, as an integer of `lengths[i]` bits.

    >>> [f"{c:03b}"[-n:] for c, n in zip(canonical_codes([1, 2, 3, 3]), [1, 2, 3, 3])]
    ['0', '10', '110', '111']
    """
    lengths = np.asarray(lengths, np.int64)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    codes = np.zeros(lengths.size, np.uint32)
    # On a scale of MAX_LENGTH bits a code begins where the one before it ends.
    step = np.left_shift(1, MAX_LENGTH - lengths[order])
    start = np.cumsum(step) - step
    codes[order] = start >> (MAX_LENGTH - lengths[order])
    return codes


class _Decoder:
    """Finds the code length at every bit position at once, then follows the chain."""

    def __init__(self, symbols: np.ndarray, lengths: np.ndarray):
        order = np.argsort(lengths, kind="stable")
        self.symbols = symbols[order]
        self.lengths = lengths[order].astype(np.int64)
        step = np.left_shift(1, MAX_LENGTH - self.lengths)
        # ends[i]: the first 24-bit window above the i-th code.
        self.ends = np.cumsum(step)
        self.longest = int(self.lengths[-1])
        prefixes = np.arange(2**FAST_BITS) << (MAX_LENGTH - FAST_BITS)
        fast = self.lengths[np.searchsorted(self.ends, prefixes, side="right")]
        self.fast = np.where(fast <= FAST_BITS, fast, 0).astype(np.uint8)
        self.mean = float((self.lengths * 0.5**self.lengths).sum())

    def decode(self, bits: BitReader, count: int, what: str) -> np.ndarray:
        loops = compiled(count)
        if loops is not None:
            return self._decode_compiled(loops, bits, count, what)
        parts, done = [], 0
        while done < count:
            first, offset = divmod(bits.position, 8)
            size = min(CHUNK_BYTES, int((count - done) * self.mean / 7) + 16)
            size = min(size, bits.data.size - first)
            if size <= 0:
                raise self._cut(what, done, count)
            window = windows(bits.data, first, size)
            starts, end = _follow(self._lengths_at(window), offset)
            if len(starts) > count - done:
                end = starts[count - done]
                del starts[count - done :]
            found = np.searchsorted(self.ends, window[starts], side="right")
            parts.append(self.symbols[found])
            done += len(starts)
            bits.position += end - offset
        if bits.position > 8 * bits.data.size:
            raise self._cut(what, done, count)
        return np.concatenate(parts)

    def _decode_compiled(
        self, loops: Any, bits: BitReader, count: int, what: str
    ) -> np.ndarray:
        first, offset = divmod(bits.position, 8)
        part = bits.data[first : first + (count * self.longest + offset) // 8 + 1]
        data = np.zeros(part.size + 8, np.uint8)
        data[: part.size] = part
        prefixes = np.arange(2**FAST_BITS) << (MAX_LENGTH - FAST_BITS)
        place = np.searchsorted(self.ends, prefixes, side="right")
        fast = np.where(self.fast > 0, place << 5 | self.fast, 0)
        out = np.empty(count, least_type(int(self.symbols.max())))
        end = loops.huffman_decode(
            data, offset, fast, self.ends, self.lengths, self.symbols, out
        )
        if end < 0:
            raise self._cut(what, "some", count)
        bits.position += int(end) - offset
        return out

    def _lengths_at(self, window: np.ndarray) -> bytes:
        length: np.ndarray = self.fast[window >> (MAX_LENGTH - FAST_BITS)]
        if self.longest > FAST_BITS:
            rare = np.flatnonzero(length == 0)
            found = np.searchsorted(self.ends, window[rare], side="right")
            length[rare] = self.lengths[found]
        return length.tobytes()

    @staticmethod
    def _cut(what: str, done: int | str, count: int) -> FormatError:
        return FormatError(
            f"The file is damaged: {what} end after {done} of {count} codes. {REPAIR}"
        )


def _follow(lengths: bytes, at: int) -> tuple[list[int], int]:
    """Start of every code from bit `at` on, and the bit after the last one."""
    starts: list[int] = []
    append, end = starts.append, len(lengths)
    while at < end:
        append(at)
        at += lengths[at]
    return starts, at


@dataclasses.dataclass(frozen=True)
class Huffman(EntropyCodec):
    """Canonical Huffman code of an array of integers in 0 .. 65536.

    The table travels with the data. A single distinct symbol costs no bits beyond it.

    Args:
        limit: longest code in bits, 1 .. 24.

    >>> data = Huffman().encode([3, 3, 3, 0])
    >>> Huffman().decode(data).tolist()
    [3, 3, 3, 0]
    >>> Huffman().cost([1, 0, 0, 3])  # of the table and of four codes
    19
    """

    name = "huffman"
    limit: int = MAX_LENGTH

    def _bits(self, counts: np.ndarray) -> int:
        lengths = code_lengths(counts, limit=self.limit)
        table = BitWriter()
        write_lengths(table, lengths, counts > 0)
        return table.bits + int((counts * lengths).sum())

    def _written(self, symbols: np.ndarray, counts: np.ndarray) -> bytes:
        lengths = code_lengths(counts, limit=self.limit)
        writer = BitWriter()
        write_lengths(writer, lengths, counts > 0)
        writer.write(canonical_codes(lengths)[symbols], lengths[symbols])
        return writer.to_bytes()

    def _table(self, bits: BitReader) -> tuple[np.ndarray, Any]:
        symbols, lengths = read_lengths(bits)
        return symbols, (symbols, lengths)

    def _codes(
        self, reader: Reader, bits: BitReader, count: int, table: Any, what: str
    ) -> np.ndarray:
        decoded = _Decoder(*table).decode(bits, count, what)
        reader.position = bits.finish()
        return decoded


def write_stream(symbols: np.ndarray) -> bytes:
    """The stream of symbols: `Huffman().write` under its first name.

    >>> write_stream(np.array([0, 1, 0, 2, 0, 0, 3])).hex()
    'c812d33900'
    """
    return Huffman().write(symbols)
