"""The table of a static rANS code: integer frequencies that add up to a power of two.

A bit string: the precision M in 4 bits; which symbols are used, as in the tables of
Huffman; then, unless M is 0 (one symbol only), log2 of the lanes in 4 bits, the number
t of mantissa bits in 4, the bit length of the first symbol's frequency in 4, and for
each further one 1 + zigzag of the difference to the length before, in Elias gamma
codes; at last, for every symbol in turn, the min(length - 1, t) bits after the leading
one of its frequency, of which the bits below are zero. Of the symbols of the greatest
length the first has no such bits: it takes what the others leave of 2**M.
"""

import dataclasses
import functools

import numpy as np

from keras_dlopt.codecs.bits import BitReader, BitWriter, windows
from keras_dlopt.codecs.huffman_table import read_used, write_used
from keras_dlopt.codecs.reader import REPAIR, unzigzag, zigzag
from keras_dlopt.errors import FormatError

MAX_PRECISION = 15
MAX_LOG_LANES = 11
PRECISIONS = (9, 12, 15)
MANTISSAS = (1, 3, 15)
LARGE = 2**18  # symbols from which on only the finest table is tried
NEARING = 6  # times that the scale of the frequencies is corrected by their sum,
TRIES, STEP = 24, 2**-12  # and after that made smaller, by more each time
LANE_BITS = 24  # what a lane takes beyond the information in its symbols
FEW = 32  # lanes from which on NumPy goes over rows of them;
AT_ONCE = 3  # fewer help a processor alone, and up to 2**3
LANES_SHARE = 0.0005  # of the stream, that the lanes may take


@dataclasses.dataclass(frozen=True)
class RansTable:
    """Frequencies of the used symbols.

    Attributes:
        precision: M; the frequencies add up to 2**M.
        log_lanes: log2 of the number of states that take turns.
        mantissa: bits that a frequency keeps after its leading one.
        symbols: the used symbols, rising.
        frequency: of each of them, 1 or more.
    """

    precision: int
    log_lanes: int
    mantissa: int
    symbols: np.ndarray
    frequency: np.ndarray


def plan(counts: np.ndarray) -> tuple[RansTable, int] | None:
    """The cheapest table for symbols that occur so often, and the bits in all.

    The bits are an estimate, good to about 0.05 % and 2 bytes a lane. None where there
    are too many symbols for a code of this kind.
    """
    # What is written was planned before, when its cost was asked for.
    return _plan(np.asarray(counts, np.int64).tobytes())


@functools.lru_cache(maxsize=64)
def _plan(data: bytes) -> tuple[RansTable, int] | None:
    counts = np.frombuffer(data, np.int64)
    symbols = np.flatnonzero(counts)
    some = counts[symbols]
    if symbols.size == 1:
        table = RansTable(0, 0, 0, symbols, np.ones(1, np.int64))
        writer = BitWriter()
        write_used(writer, counts > 0)
        return table, _bits(table, writer.bits)
    used, best = counts > 0, None
    writer = BitWriter()
    write_used(writer, used)
    large = int(some.sum()) >= LARGE
    for precision in PRECISIONS[-1:] if large else PRECISIONS:
        if 2 * symbols.size > 2**precision and precision < MAX_PRECISION:
            continue
        for mantissa in MANTISSAS[-1:] if large else MANTISSAS:
            frequency = frequencies(some, precision, mantissa)
            if frequency is None:
                continue
            ideal = float((some * (precision - np.log2(frequency))).sum())
            lanes = _log_lanes(ideal)
            table = RansTable(precision, lanes, mantissa, symbols, frequency)
            bits = _bits(table, writer.bits) + int(ideal)
            if best is None or bits < best[1]:
                best = table, bits
    return best


def _log_lanes(bits: float) -> int:
    share = int(bits * LANES_SHARE / LANE_BITS)
    lanes = min(max(share.bit_length() - 1, 0), MAX_LOG_LANES)
    return lanes if 1 << lanes >= FEW else min(lanes, AT_ONCE)


def _bits(table: RansTable, used_bits: int) -> int:
    bits = 8 * ((used_bits + 4 + 7) // 8)
    if table.precision:
        length = _lengths(table.frequency)
        steps = zigzag(np.diff(length)) + 1
        bits += int((2 * np.frexp(steps)[1] - 1).sum()) + 12
        bits += int(np.minimum(length - 1, table.mantissa).sum())
        bits += 24 + LANE_BITS * 2**table.log_lanes
    return bits


def frequencies(counts: np.ndarray, precision: int, mantissa: int) -> np.ndarray | None:
    """Integers of so many mantissa bits near the shares, whose sum is 2**precision."""
    total, share = 1 << precision, float(1 << precision) / counts.sum()
    if counts.size > total:
        return None
    for attempt in range(TRIES):
        rounded: np.ndarray = np.maximum(np.rint(counts * share), 1).astype(np.int64)
        drop = np.maximum(_lengths(rounded) - 1 - mantissa, 0)
        rounded = (rounded + ((1 << drop) >> 1)) >> drop << drop
        excess, rest = int(rounded.sum()) - total, _rest(rounded)
        if abs(excess) > total >> 10 and attempt < NEARING:
            share *= max(1 - excess / total, 0.5)
            continue
        rounded[rest] -= excess
        if rounded[rest] >= 1 and _rest(rounded) == rest:
            return rounded
        # It would no longer be of the greatest length, so it shall have more.
        share *= 1 - STEP * 1.5 ** max(attempt - NEARING, 0)
    return None


def _rest(frequency: np.ndarray) -> int:
    """The symbol that takes what the others leave."""
    return int(np.argmax(_lengths(frequency)))


def _lengths(values: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = np.frexp(values)[1].astype(np.int64)
    return lengths


def write_table(table: RansTable) -> bytes:
    """The table, padded to whole bytes."""
    writer = BitWriter()
    writer.write([table.precision], [4])
    used = np.zeros(int(table.symbols[-1]) + 1, bool)
    used[table.symbols] = True
    write_used(writer, used)
    if table.precision:
        length = _lengths(table.frequency)
        head = [table.log_lanes, table.mantissa, length[0]]
        writer.write(head, [4, 4, 4])
        writer.gamma(zigzag(np.diff(length)) + 1)
        kept = np.minimum(length - 1, table.mantissa)
        kept[_rest(table.frequency)] = 0
        rest = table.frequency - (1 << (length - 1))
        writer.write(rest >> (length - 1 - kept), kept)
    return writer.to_bytes()


def read_table(bits: BitReader) -> RansTable:
    """Reads a table.

    Raises:
        FormatError: if its frequencies do not add up, or for any other damage.
    """
    precision = bits.read(4)
    symbols = read_used(bits)
    if not precision:
        if symbols.size > 1:
            raise _bad(f"{symbols.size} symbols of precision 0")
        return RansTable(0, 0, 0, symbols, np.ones(1, np.int64))
    lanes, mantissa, first = bits.read(4), bits.read(4), bits.read(4)
    if lanes > MAX_LOG_LANES or not 2 <= symbols.size <= 1 << precision:
        raise _bad(f"2**{lanes} lanes, {symbols.size} symbols of 2**{precision}")
    steps = np.array(bits.gamma(symbols.size - 1), object)
    if steps.max() > 2 * MAX_PRECISION + 1:
        raise _bad(f"a difference of lengths coded as {steps.max()}")
    steps = unzigzag(steps.astype(np.int64) - 1)
    length = first + np.concatenate([[0], np.cumsum(steps)])
    if length.min() < 1 or length.max() > precision:
        raise _bad(f"frequencies of {length.min()} to {length.max()} bits")
    frequency = _read_frequencies(bits, length, mantissa)
    rest = int(np.argmax(length))
    frequency[rest] = 0
    frequency[rest] = (1 << precision) - int(frequency.sum())
    if frequency[rest] < 1:
        raise _bad("frequencies that add up to more than all")
    return RansTable(precision, lanes, mantissa, symbols, frequency)


def _read_frequencies(bits: BitReader, length: np.ndarray, mantissa: int) -> np.ndarray:
    kept = np.minimum(length - 1, mantissa)
    kept[int(np.argmax(length))] = 0
    first, offset = divmod(bits.position, 8)
    starts = offset + np.cumsum(kept) - kept
    total = int(kept.sum())
    bits.skip(total)
    window = windows(bits.data, first, (offset + total + 7) // 8 + 1)
    found = window[starts].astype(np.int64) >> (24 - kept)
    frequency: np.ndarray = (1 << (length - 1)) + (found << (length - 1 - kept))
    return frequency


def _bad(what: str) -> FormatError:
    return FormatError(f"The file is damaged: a rANS table declares {what}. {REPAIR}")
