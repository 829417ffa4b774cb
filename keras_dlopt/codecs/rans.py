"""Range asymmetric numeral systems: near the entropy, at a table look-up a symbol.

Duda 2013, "Asymmetric numeral systems: entropy coding combining speed of Huffman coding
with compression rate of arithmetic coding", in the form of Giesen 2014, "Interleaved
entropy coders": symbol i belongs to lane i modulo the number of lanes, whose states
take turns in reading 16-bit words from one stream. States are 32-bit integers of 2**16
or more between symbols. With F and C the frequency and the sum of the frequencies
before it, decoding finds the symbol with C <= x mod 2**M < C + F, sets
x = F (x >> M) + (x mod 2**M) - C, and if x < 2**16, x = x 2**16 + the next word.
Lanes are many where the stream is long, so that NumPy can go over them at once.
"""

import dataclasses
from typing import Any

import numpy as np

from keras_dlopt.codecs.bits import BitReader
from keras_dlopt.codecs.coder import EntropyCodec, least_type
from keras_dlopt.codecs.rans_table import (
    FEW,
    RansTable,
    plan,
    read_table,
    write_table,
)
from keras_dlopt.codecs.reader import REPAIR, Reader, varint
from keras_dlopt.codecs.speed import compiled
from keras_dlopt.errors import ConfigError, FormatError

LOW = 1 << 16  # the least state between two symbols
IMPOSSIBLE = 1 << 60  # the cost of what cannot be written
MAX_SYMBOL = 2**16
PIECE = 2**16  # symbols that are kept as Python's integers


@dataclasses.dataclass(frozen=True)
class Rans(EntropyCodec):
    """Interleaved rANS code of an array of integers in 0 .. 65536.

    The table travels with the data. A single distinct symbol costs no bits beyond it.

    >>> data = Rans().encode([3, 3, 3, 0])
    >>> Rans().decode(data).tolist()
    [3, 3, 3, 0]
    """

    name = "rans"

    def _bits(self, counts: np.ndarray) -> int:
        found = plan(counts)
        return IMPOSSIBLE if found is None else found[1]

    def _written(self, symbols: np.ndarray, counts: np.ndarray) -> bytes:
        found = plan(counts)
        if found is None or int(symbols.max()) > MAX_SYMBOL:
            raise ConfigError(
                "rANS codes symbols in [0, 65536], far fewer than 32768 different "
                "ones. "
                f"Received: {np.unique(symbols).size} of them, up to "
                f"{int(symbols.max())}. Use Huffman."
            )
        table = found[0]
        if not table.precision:
            return write_table(table)
        states, words = _encode(symbols, table)
        return b"".join(
            [
                write_table(table),
                states.astype("<u4").tobytes(),
                varint(words.size),
                words.astype("<u2").tobytes(),
            ]
        )

    def _table(self, bits: BitReader) -> tuple[np.ndarray, RansTable]:
        table = read_table(bits)
        return table.symbols, table

    def _codes(
        self, reader: Reader, bits: BitReader, count: int, table: Any, what: str
    ) -> np.ndarray:
        reader.position = bits.finish()
        return _read(reader, count, table, what)


def _encode(symbols: np.ndarray, table: RansTable) -> tuple[np.ndarray, np.ndarray]:
    start = np.zeros(int(table.symbols[-1]) + 1, np.uint32)
    frequency = start.copy()
    frequency[table.symbols] = table.frequency
    start[table.symbols] = np.cumsum(table.frequency) - table.frequency
    states = np.full(1 << table.log_lanes, LOW, np.uint32)
    loops = compiled(symbols.size)
    if loops is None:
        rows = _encode_one if states.size == 1 else _encode_rows
        return rows(symbols, frequency, start, states, table.precision)
    words = np.empty(symbols.size + 1, np.uint16)
    place = loops.rans_encode(symbols, frequency, start, table.precision, states, words)
    return states, words[place:]


def _encode_rows(
    symbols: np.ndarray,
    frequency: np.ndarray,
    start: np.ndarray,
    states: np.ndarray,
    precision: int,
) -> tuple[np.ndarray, np.ndarray]:
    """One symbol of every lane at a time, the last ones first."""
    lanes, parts = states.size, []
    shift, top = np.uint32(precision), np.uint32(32 - precision)
    for first in reversed(range(0, symbols.size, lanes)):
        row = symbols[first : first + lanes]
        f, x = frequency[row], states[: row.size]
        full = (x >> top) >= f
        parts.append((x[full] & np.uint32(0xFFFF)).astype(np.uint16))
        x = np.where(full, x >> np.uint32(16), x)
        q = x // f
        states[: row.size] = (q << shift) + (x - q * f) + start[row]
    return states, np.concatenate(parts[::-1])


def _read(reader: Reader, count: int, table: RansTable, what: str) -> np.ndarray:
    lanes = 1 << table.log_lanes
    states = np.frombuffer(reader.take(4 * lanes, what), "<u4").astype(np.uint32)
    size = reader.varint("the number of words")
    data = reader.take(2 * size, what)
    if size > count or states.min() < LOW:
        raise _damaged(what)
    words = np.zeros(size + lanes, np.uint16)
    words[:size] = np.frombuffer(data, "<u2")
    loops = compiled(count)
    if loops is None:
        rows = _decode_few if lanes < FEW else _decode_rows
        out, used = rows(states, words, size, count, table)
    else:
        out = np.empty(count, least_type(int(table.symbols[-1])))
        used = loops.rans_decode(
            states, words, size, _packed(table), table.precision, out
        )
    if used != size or (states != LOW).any():
        raise _damaged(what)
    return out


def _packed(table: RansTable) -> np.ndarray:
    """For every slot: symbol, frequency, and slot less the start, 16 bits each."""
    f = table.frequency.astype(np.uint64)
    start = np.cumsum(f) - f
    slots = np.arange(1 << table.precision, dtype=np.uint64)
    entry = table.symbols.astype(np.uint64) << np.uint64(32) | f << np.uint64(16)
    return np.repeat(entry, table.frequency) + slots - np.repeat(start, table.frequency)


def _decode_rows(
    states: np.ndarray, words: np.ndarray, size: int, count: int, table: RansTable
) -> tuple[np.ndarray, int]:
    """One symbol of every lane at a time; slots are looked up together at the end."""
    lanes, place, full = states.size, 0, count // states.size
    entry = _packed(table)
    frequency = (entry >> np.uint64(16) & np.uint64(0xFFFF)).astype(np.uint32)
    rest = (entry & np.uint64(0xFFFF)).astype(np.uint32)
    slots = np.empty(count, np.uint16)
    mask, shift = np.uint32((1 << table.precision) - 1), np.uint32(table.precision)
    wide = words.astype(np.uint32)
    for row in range(full + (count % lanes > 0)):
        x = states if row < full else states[: count - full * lanes]
        slot = (x & mask).astype(np.intp)
        slots[row * lanes : row * lanes + x.size] = slot
        x >>= shift
        x *= frequency.take(slot)
        x += rest.take(slot)
        short = (x < LOW).nonzero()[0]
        x[short] = x[short] << np.uint32(16) | wide[place : place + short.size]
        place += short.size
        if place > size:
            break
    return _by_slot(table)[slots], place


def _encode_one(
    symbols: np.ndarray,
    frequency: np.ndarray,
    start: np.ndarray,
    states: np.ndarray,
    precision: int,
) -> tuple[np.ndarray, np.ndarray]:
    """One lane: Python's own integers are faster than rows of one."""
    x, words = LOW, []
    fs, starts = frequency.tolist(), start.tolist()
    for symbol in symbols[::-1].tolist():
        f = fs[symbol]
        if x >> (32 - precision) >= f:
            words.append(x & 0xFFFF)
            x >>= 16
        x = (x // f << precision) + x % f + starts[symbol]
    states[0] = x
    return states, np.array(words[::-1], np.uint16)


def _decode_few(
    states: np.ndarray, words: np.ndarray, size: int, count: int, table: RansTable
) -> tuple[np.ndarray, int]:
    """Few lanes: Python's own integers are faster than short rows."""
    entry = _packed(table)
    frequency = (entry >> np.uint64(16) & np.uint64(0xFFFF)).tolist()
    rest = (entry & np.uint64(0xFFFF)).tolist()
    symbols = _by_slot(table)
    out = np.empty(count, symbols.dtype)
    mask, precision = (1 << table.precision) - 1, table.precision
    xs, more, place, lanes = states.tolist(), words.tolist(), 0, states.size
    every, piece = range(lanes), lanes * max(PIECE // lanes, 1)
    for first in range(0, count, piece):
        slots: list[int] = []
        keep = slots.append
        last = min(first + piece, count)
        for row in range(first, last, lanes):
            for lane in every if row + lanes <= count else range(count - row):
                x = xs[lane]
                slot = x & mask
                keep(slot)
                x = frequency[slot] * (x >> precision) + rest[slot]
                if x < LOW:
                    x = x << 16 | more[place]
                    place += 1
                xs[lane] = x
            if place > size:
                raise _damaged("few lanes")
        out[first:last] = symbols[slots]
    states[:] = xs
    return out, place


def _by_slot(table: RansTable) -> np.ndarray:
    """The symbol of every slot, in the least type."""
    kind = least_type(int(table.symbols[-1]))
    return np.repeat(table.symbols.astype(kind), table.frequency)


def _damaged(what: str) -> FormatError:
    return FormatError(
        f"The file is damaged: the rANS stream of {what} does not end where it began. "
        f"{REPAIR}"
    )
