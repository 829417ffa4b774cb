"""Bit strings, most significant bit first, written and read many codes at a time."""

import numpy as np
import numpy.typing as npt

from keras_dlopt.errors import FormatError

CHUNK = 1 << 20  # codes packed at once: bounds the memory of long streams


class BitWriter:
    """Collects codes of up to 32 bits each.

    >>> writer = BitWriter()
    >>> writer.write([0b1, 0b011], [1, 3])
    >>> writer.bits, writer.to_bytes().hex()
    (4, 'b0')
    """

    def __init__(self) -> None:
        self.bits = 0
        self._words: list[bytes] = []
        self._tail = (0, 0)  # value and length of the bits short of a 32-bit word

    def write(self, codes: npt.ArrayLike, lengths: npt.ArrayLike) -> None:
        """Appends `codes[i]`, its lowest `lengths[i]` bits, for every i."""
        codes = np.asarray(codes, np.uint64)
        lengths = np.asarray(lengths, np.int64)
        for start in range(0, codes.size, CHUNK):
            part = slice(start, start + CHUNK)
            self._write_chunk(codes[part], lengths[part])

    def gamma(self, values: npt.ArrayLike) -> None:
        """Appends Elias gamma codes of integers in 1 .. 2**16 - 1.

        A value of k bits is written as k - 1 zeros and then its k bits.
        """
        values = np.asarray(values, np.int64)
        self.write(values, 2 * np.frexp(values)[1].astype(np.int64) - 1)

    def to_bytes(self) -> bytes:
        """Everything written so far; the last byte is padded with zero bits."""
        value, length = self._tail
        tail = (value << (32 - length)).to_bytes(4, "big")[: (length + 7) // 8]
        return b"".join([*self._words, tail])

    def _write_chunk(self, codes: np.ndarray, lengths: np.ndarray) -> None:
        value, length = self._tail
        codes = np.concatenate([np.array([value], np.uint64), codes])
        lengths = np.concatenate([[length], lengths])
        ends = np.cumsum(lengths)
        starts = ends - lengths
        total = int(ends[-1])
        self.bits += total - length
        # Each code lies in a 64-bit window that starts at a 32-bit word. Codes do not
        # overlap, so their sum is their union, exact in float64 below 2**53.
        shift = np.minimum(64 - (starts & 31) - lengths, 63).astype(np.uint64)
        window = codes << shift
        word = starts >> 5
        count = total // 32 + 2
        high = (window >> np.uint64(32)).astype(np.float64)
        low = (window & np.uint64(0xFFFFFFFF)).astype(np.float64)
        words = np.bincount(word, high, count) + np.bincount(word + 1, low, count)
        words = words.astype(np.uint32)
        full = total // 32
        self._words.append(words[:full].astype(">u4").tobytes())
        left = total % 32
        self._tail = (int(words[full]) >> (32 - left), left)


def windows(data: np.ndarray, first: int, count: int) -> np.ndarray:
    """The 24 bits from every bit position of `count` bytes of `data`.

    Bits after the end of the data read as zeros.

    Args:
        data: `uint8` array.
        first: index of the first byte.
        count: number of bytes; the result has `8 * count` entries.
    """
    part = np.zeros(count + 3, np.uint32)
    have = data[first : first + count + 3]
    part[: have.size] = have
    word = part[:-3] << 24 | part[1:-2] << 16 | part[2:-1] << 8 | part[3:]
    shifted = word[:, None] << np.arange(8, dtype=np.uint32)
    return (shifted >> np.uint32(8)).reshape(-1)


class BitReader:
    """Reads the small numbers of a code table; streams are read by their own codec.

    Args:
        data: the bytes.
        start: index of the byte to begin with.
    """

    WINDOW = 1024  # bytes turned into text at a time

    def __init__(self, data: bytes | memoryview, *, start: int = 0):
        self.data = np.frombuffer(data, np.uint8)
        self.position = 8 * start

    def read(self, width: int) -> int:
        """The next `width` bits as an unsigned integer."""
        text = self._text()[:width]
        if len(text) < width:
            raise _cut()
        self.position += width
        return int(text, 2)

    def skip(self, width: int) -> None:
        """Passes over `width` bits, which must be there."""
        if self.position + width > 8 * self.data.size:
            raise _cut()
        self.position += width

    def gamma(self, count: int) -> list[int]:
        """The next `count` Elias gamma codes."""
        values: list[int] = []
        text, at = self._text(), 0
        while len(values) < count:
            one = text.find("1", at)
            end = 2 * one - at + 1
            if one < 0 or end > len(text):
                if at == 0:
                    raise _cut()
                self.position += at
                text, at = self._text(), 0
                continue
            values.append(int(text[one:end], 2))
            at = end
        self.position += at
        return values

    def finish(self) -> int:
        """Index of the byte after the current one; its leftover bits must be zero."""
        if self.position % 8 and self.read(-self.position % 8):
            raise FormatError(
                "The file is damaged: a bit string is padded with bits other than "
                "zero. Restore it from a copy or save it again."
            )
        return self.position // 8

    def _text(self) -> str:
        byte, bit = divmod(self.position, 8)
        bits = np.unpackbits(self.data[byte : byte + self.WINDOW])
        return (bits + 48).tobytes().decode("ascii")[bit:]


def _cut() -> FormatError:
    return FormatError(
        "The file is damaged: a bit string ends in the middle of a code. "
        "Restore it from a copy or save it again."
    )
