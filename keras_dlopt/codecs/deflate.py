"""Deflate (RFC 1951) without zlib's wrapper, and byte planes before it."""

import dataclasses
import zlib

import numpy as np

from keras_dlopt.codecs.coder import Codec
from keras_dlopt.codecs.reader import REPAIR, Reader, varint
from keras_dlopt.errors import FormatError

SMALL = 1 << 16  # up to this size every effort is made


def deflate(data: bytes, *, level: int = 9, dictionary: bytes = b"") -> bytes:
    """Raw deflate stream, the smaller of two of zlib's strategies.

    Above 64 KiB the level is 6 at most, several times faster, and the second strategy
    is Huffman coding alone, which suits the noise in the low bytes of floats.
    `dictionary` is text that the data may refer back to.
    """
    small = len(data) <= SMALL
    second = zlib.Z_FILTERED if small else zlib.Z_HUFFMAN_ONLY
    streams = []
    for strategy in (zlib.Z_DEFAULT_STRATEGY, second):
        effort = level if small else min(level, 6)
        coder = zlib.compressobj(effort, zlib.DEFLATED, -15, 9, strategy, dictionary)
        streams.append(coder.compress(data) + coder.flush())
    return min(streams, key=len)


def inflate(data: bytes, size: int, what: str, *, dictionary: bytes = b"") -> bytes:
    """Exactly `size` bytes out of a raw deflate stream; never allocates more.

    Raises:
        FormatError: if the stream is damaged or holds more or fewer bytes.
    """
    decoder = zlib.decompressobj(-15, zdict=dictionary)
    try:
        out = decoder.decompress(data, size + 1)
    except zlib.error as error:
        raise FormatError(
            f"The file is damaged: the deflate stream of {what} is broken ({error}). "
            f"{REPAIR}"
        ) from error
    if len(out) != size or not decoder.eof or decoder.unused_data:
        raise FormatError(
            f"The file is damaged: {what} should be {size} bytes in one deflate "
            f"stream, and is not. {REPAIR}"
        )
    return out


def write_deflated(data: bytes, *, level: int = 9, dictionary: bytes = b"") -> bytes:
    """Length of the stream, then the stream."""
    stream = deflate(data, level=level, dictionary=dictionary)
    return varint(len(stream)) + stream


def read_deflated(
    reader: Reader, size: int, what: str, *, dictionary: bytes = b""
) -> bytes:
    """Reads what `write_deflated` wrote; `size` is already reserved."""
    length = reader.varint(f"the compressed size of {what}")
    return inflate(reader.take(length, what), size, what, dictionary=dictionary)


def to_planes(bits: np.ndarray) -> bytes:
    """First the lowest byte of every element, then the next: exponents meet."""
    little = bits.astype(bits.dtype.newbyteorder("<"), copy=False)
    return little.view(np.uint8).reshape(-1, bits.dtype.itemsize).T.tobytes()


def from_planes(data: bytes, itemsize: int) -> np.ndarray:
    """The inverse of `to_planes`, as unsigned integers."""
    planes = np.frombuffer(data, np.uint8).reshape(itemsize, -1)
    little = np.ascontiguousarray(planes.T).reshape(-1).view(f"<u{itemsize}")
    return little.astype(f"u{itemsize}", copy=False)


@dataclasses.dataclass(frozen=True)
class Deflate(Codec):
    """Deflate of a byte string.

    Args:
        level: effort, 0 .. 9.

    >>> Deflate().decode(Deflate().encode(b"aaaa"))
    b'aaaa'
    """

    name = "deflate"
    level: int = 9

    def encode(self, data: bytes) -> bytes:
        """Length of the data, length of the stream, the stream."""
        return varint(len(data)) + write_deflated(data, level=self.level)

    def decode(self, data: bytes, *, max_bytes: int = 2**31) -> bytes:
        """The data, at most `max_bytes` of it."""
        reader = Reader(data, max_bytes=max_bytes)
        size = reader.varint("the size of the data")
        reader.reserve(size, "the data")
        return read_deflated(reader, size, "the data")
