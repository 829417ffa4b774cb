"""Reads idx files, the format of MNIST, plain or gzipped.

A file is: two zero bytes, a type byte (8 for uint8), the number of dimensions, one
big-endian uint32 per dimension, then the values. A gzip stream is the same thing
compressed. Nothing in the header is trusted before it was checked against the size of
the file.
"""

import gzip
import math
import os
import pathlib
import struct
import zlib
from typing import Any

import numpy as np

from keras_dlopt.errors import DataError

# Deflate cannot expand a byte to more than this (zlib's technical notes).
MAX_DEFLATE_RATIO = 1032
IMAGES = "images-idx3-ubyte"
LABELS = "labels-idx1-ubyte"


def find_idx(folder: str | os.PathLike[str], stem: str) -> pathlib.Path | None:
    """The file `stem` or `stem.gz` in `folder`, or None.

    Also knows the spelling with a dot, as in `train-images.idx3-ubyte`.
    """
    for name in (stem, stem.replace("-idx", ".idx")):
        for suffix in ("", ".gz"):
            path = pathlib.Path(folder) / (name + suffix)
            if path.is_file():
                return path
    return None


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads one idx file of unsigned bytes.

    Args:
        path: the file; a name ending in `.gz` is decompressed.

    Raises:
        DataError: when the file is not idx, not of bytes, or not of the size that its
            header announces.
    """
    path = pathlib.Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            shape = _read_header(file, path)
            count = math.prod(shape)
            _check_announced(count, shape, path)
            values = file.read(count + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} is damaged: {error}. Download or copy it again."
        ) from error
    if len(values) != count:
        found = "more" if len(values) > count else f"only {len(values)}"
        raise DataError(
            f"{path} announces {count} values (shape {shape}) and holds {found}. "
            "Download or copy it again."
        )
    return np.frombuffer(values, np.uint8).reshape(shape).copy()


def _read_header(file: Any, path: Any) -> tuple[int, ...]:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or not 1 <= head[3] <= 4:
        raise DataError(
            f"{path} is not an idx file: it starts with {head!r}, expected two zero "
            "bytes, a type and 1 to 4 dimensions."
        )
    if head[2] != 8:
        raise DataError(
            f"{path} holds values of idx type {head[2]:#04x}; expected 0x08 (bytes)."
        )
    sizes = file.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise DataError(f"{path} ends inside its header. Download or copy it again.")
    return struct.unpack(f">{head[3]}I", sizes)


def _check_announced(count: int, shape: tuple[int, ...], path: pathlib.Path) -> None:
    """Refuses sizes that the file cannot hold, before any memory is asked for."""
    size = path.stat().st_size
    limit = size * MAX_DEFLATE_RATIO if path.suffix == ".gz" else size
    if count == 0 or count > limit:
        raise DataError(
            f"{path} announces shape {shape}, {count} bytes, which a file of {size} "
            "bytes cannot hold. Download or copy it again."
        )
