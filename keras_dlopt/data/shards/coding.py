"""One array to bytes and back, without loss: a reversible filter, then zstandard.

| filter | what it does | for |
|---|---|---|
| `plain` | nothing | anything |
| `rows` | each row less the one above it, modulo 256 | images of uint8 |
| `bytes` | first bytes of all values, then second ones, ... | floats, wide integers |
| `of 255` | `round(255 * x)`, if that gives `x` back to the bit | images in [0, 1] |
"""

import math
from typing import Any

import numpy as np
import zstandard

from keras_dlopt.errors import FormatError

FILTERS = ("plain", "rows", "bytes", "of 255", "of 255, rows")
KINDS = "biuf"  # booleans, integers, floats


def filters(array: np.ndarray) -> list[str]:
    """Those that may make an array smaller, `plain` first."""
    if array.dtype == np.float32 and array.size and _whole(array) is not None:
        return ["of 255", "of 255, rows"] if array.ndim > 2 else ["of 255"]
    if array.dtype == np.uint8 and array.ndim > 2:
        return ["plain", "rows"]
    return ["plain", "bytes"] if array.itemsize > 1 else ["plain"]


def encoded(array: np.ndarray, name: str, level: int) -> bytes | None:
    """An array through a filter and zstandard; None where the filter loses something.

    Args:
        array: (examples, ...), of a type in `KINDS`.
        name: of the filter.
        level: of zstandard, 1 to 22.
    """
    if name.startswith("of 255"):
        whole = _whole(array)
        if whole is None:
            return None
        array = whole
    if name.endswith("rows"):
        first = array[:, :1]
        array = np.concatenate([first, array[:, 1:] - array[:, :-1]], axis=1)
    if name == "bytes":
        array = array.reshape(-1).view("uint8").reshape(-1, array.itemsize).T
    pack = zstandard.ZstdCompressor(level=level, write_checksum=True)
    return pack.compress(np.ascontiguousarray(array).tobytes())


def decoded(data: bytes, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What `encoded` was given.

    Raises:
        FormatError: for bytes that are damaged or of another size.
    """
    dtype = np.dtype(dtype)
    stored = np.dtype("uint8") if name.startswith("of 255") else dtype
    size = math.prod(shape) * stored.itemsize
    try:
        # No more than was announced is ever made of it.
        if zstandard.frame_content_size(data) != size:
            raise FormatError("a block has another size than its file says")
        raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise FormatError(f"a block is damaged ({error})") from error
    if name == "bytes":
        planes = np.frombuffer(raw, "uint8").reshape(dtype.itemsize, -1)
        raw = np.ascontiguousarray(planes.T).tobytes()
    array: np.ndarray = np.frombuffer(raw, stored).reshape(shape)
    if name.endswith("rows"):
        array = np.add.accumulate(array, axis=1, dtype="uint8")
    return _OF_255[array] if name.startswith("of 255") else array


_OF_255 = np.arange(256, dtype="float32") / np.float32(255)


def _whole(array: np.ndarray) -> np.ndarray | None:
    """Values of 0, 1/255, ... 1 as their numerators; None if one is another value."""
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        return None
    whole = np.rint(array * 255).astype("uint8")
    same = _OF_255[whole].view("uint32") == array.view("uint32")
    return whole if same.all() else None
