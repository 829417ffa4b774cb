"""TFRecord files: written and checked by TensorFlow, found and read without it.

A record is its length (8 bytes, little-endian), a checksum of that, its bytes, and a
checksum of those; checksums are CRC-32C, turned by 15 bits and shifted by a constant.
"""

import os
import pathlib
import struct
import tempfile
from collections.abc import Iterable, Iterator

from keras_dlopt.errors import FormatError

_HEAD, _TAIL = struct.Struct("<QI"), struct.Struct("<I")
_COUNT = struct.Struct("<Q")
Place = tuple[int, int, int]


def framed(records: Iterable[bytes]) -> bytes:
    """Records as the bytes of a TFRecord file."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "records")
        with tf.io.TFRecordWriter(path) as file:
            for record in records:
                file.write(record)
        return pathlib.Path(path).read_bytes()


def records_of(path: pathlib.Path) -> Iterator[bytes]:
    """The records of a file, each with its checksum checked.

    Raises:
        FormatError: for a file that is damaged or cut off.
    """
    import tensorflow as tf

    try:
        for record in tf.data.TFRecordDataset(str(path)):
            yield record.numpy()
    except tf.errors.OpError as error:
        raise FormatError(f"{path} is damaged: {error.message}.") from error


def opened(path: pathlib.Path) -> tuple[bytes, list[Place]]:
    """The first record of a file, and where the others are.

    The checksums of the first record and of all lengths are tried; what the other
    records hold is not read but for their first number.

    Returns:
        The record, and for each other one its offset, length and first number.

    Raises:
        FormatError: for a file that is damaged, cut off or empty.
    """
    size = path.stat().st_size
    first, places, at = b"", list[Place](), 0
    with open(path, "rb") as file:
        while at < size or not at:
            file.seek(at)
            head = file.read(_HEAD.size)
            # What a file announces is no reason to ask for more memory than it has.
            length, check = _HEAD.unpack(head) if len(head) == _HEAD.size else (size, 0)
            if at + _HEAD.size + length + _TAIL.size > size:
                raise FormatError(f"{path} is damaged: it ends in a record.")
            if masked_crc(head[:8]) != check:
                raise FormatError(f"{path} is damaged: a length has another checksum.")
            at += _HEAD.size
            if not first:
                first, tail = file.read(length), file.read(_TAIL.size)
                if masked_crc(first) != _TAIL.unpack(tail)[0]:
                    raise FormatError(f"{path} is damaged: its header is not whole.")
            elif length < _COUNT.size:
                raise FormatError(f"{path} is damaged: a block ends too early.")
            else:
                places.append((at, length, *_COUNT.unpack(file.read(_COUNT.size))))
            at += length + _TAIL.size
    return first, places


def at(path: str, offset: int, length: int) -> bytes:
    """Part of a file."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def masked_crc(data: bytes) -> int:
    """The checksum of TFRecord files."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = [_entry(byte) for byte in range(256)]
