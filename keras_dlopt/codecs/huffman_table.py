"""The table of a canonical Huffman code: its lengths, in few bits.

First which symbols are used, as runs: the number of runs, then for each run the
distance from the end of the run before (plus 1) and its size, all Elias gamma. Then,
if there are two or more used symbols: the first length in 5 bits, and for every
further used symbol the zigzag of the difference to the length before (plus 1), Elias
gamma. Neighbouring values occur about equally often, so most differences are 0.
"""

import numpy as np

from keras_dlopt.codecs.bits import BitReader, BitWriter
from keras_dlopt.codecs.reader import REPAIR, unzigzag, zigzag
from keras_dlopt.errors import ConfigError, FormatError

MAX_LENGTH = 24
MAX_ALPHABET = 2**16 + 1  # 65536 symbols and an escape


def write_used(writer: BitWriter, used: np.ndarray) -> None:
    """Writes which symbols are used, as runs.

    Args:
        writer: receives them.
        used: bool per symbol, at least one of them true.
    """
    edges = np.flatnonzero(np.diff(used.astype(np.int8), prepend=0, append=0))
    starts, ends = edges[::2], edges[1::2]
    skips = starts - np.concatenate([[0], ends[:-1]])
    writer.gamma([starts.size])
    writer.gamma(np.stack([skips + 1, ends - starts], axis=1).reshape(-1))


def read_used(bits: BitReader) -> np.ndarray:
    """The used symbols, rising.

    Raises:
        FormatError: if the alphabet is too large.
    """
    (count,) = bits.gamma(1)
    if count > MAX_ALPHABET:
        raise _bad(f"{count} runs of symbols")
    runs = np.array(bits.gamma(2 * count), object).reshape(-1, 2)
    size = int(runs.sum()) - count
    if size > MAX_ALPHABET:
        raise _bad(f"an alphabet of {size} symbols")
    runs = runs.astype(np.int64)
    used = np.zeros(size, bool)
    ends = np.cumsum(runs.sum(axis=1) - 1)
    for (_, run), end in zip(runs, ends, strict=True):
        used[end - run : end] = True
    return np.flatnonzero(used)


def write_lengths(writer: BitWriter, lengths: np.ndarray, used: np.ndarray) -> None:
    """Writes the table.

    Args:
        writer: receives it.
        lengths: code length of every symbol.
        used: bool per symbol, at least one of them true.
    """
    if used.size > MAX_ALPHABET:
        raise ConfigError(
            f"Huffman symbols must be in [0, {MAX_ALPHABET - 1}]. Received: "
            f"{used.size - 1}. Split large symbols first."
        )
    write_used(writer, used)
    present = lengths[used].astype(np.int64)
    if present.size > 1:
        writer.write([present[0]], [5])
        writer.gamma(zigzag(np.diff(present)) + 1)


def read_lengths(bits: BitReader) -> tuple[np.ndarray, np.ndarray]:
    """Reads a table; returns the used symbols, rising, and their code lengths.

    Raises:
        FormatError: if the lengths do not form a complete code.
    """
    symbols = read_used(bits)
    if symbols.size == 1:
        return symbols, np.zeros(1, np.int64)
    first = bits.read(5)
    steps = np.array(bits.gamma(symbols.size - 1), object)
    if steps.max() > 2 * MAX_LENGTH:
        raise _bad(f"a difference of lengths coded as {steps.max()}")
    steps = unzigzag(steps.astype(np.int64) - 1)
    lengths = first + np.concatenate([[0], np.cumsum(steps)])
    if lengths.min() < 1 or lengths.max() > MAX_LENGTH:
        raise _bad(f"code lengths from {lengths.min()} to {lengths.max()}")
    if np.left_shift(1, MAX_LENGTH - lengths).sum() != 1 << MAX_LENGTH:
        raise _bad("lengths that do not form a complete code")
    return symbols, lengths


def _bad(what: str) -> FormatError:
    return FormatError(f"The file is damaged: a code table declares {what}. {REPAIR}")
