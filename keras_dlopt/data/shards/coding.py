"""One array to bytes and back.

Without loss, a reversible filter and zstandard; the smallest is chosen:

| filter | what it does | for |
|---|---|---|
| `plain` | nothing | anything |
| `rows` | each row less the one above it, modulo 256 | images of uint8 |
| `bytes` | first bytes of all values, then second ones, ... | floats, wide integers |
| `of 255` | `round(255 * x)`, if that gives `x` back to the bit | images in [0, 1] |

What the user may ask for instead:

| coding | what it does | loss | for |
|---|---|---|---|
| `png`, `webp` | pictures | none | images of uint8, 1 or 3 colors |
| `jpeg 90`, `webp 80` | pictures of that quality, 1 to 100 | yes | the same |
| `levels 8`, `levels 16` | the nearest of 2^b levels from the least to the largest \
number of a block | at most half a step | floats |
"""

import math
import re
import struct
from typing import Any

import numpy as np
import zstandard

from keras_dlopt.data.shards import pictures
from keras_dlopt.errors import DataError, FormatError

FILTERS = ("plain", "rows", "bytes", "of 255", "of 255, rows")
KINDS = "biuf"  # booleans, integers, floats
# No array of a block is larger: what a stranger's file may ask for.
MAX_BLOCK_BYTES = 1 << 30
_ASKED = re.compile(r"png|webp|(?:jpeg|webp) (?:[1-9]\d?|100)|levels (?:8|16)")
_RANGE = struct.Struct("<dd")


def filters(array: np.ndarray) -> list[str]:
    """Those that may make an array smaller, `plain` first."""
    if array.dtype == np.float32 and array.size and _whole(array) is not None:
        return ["of 255", "of 255, rows"] if array.ndim > 2 else ["of 255"]
    if array.dtype == np.uint8 and array.ndim > 2:
        return ["plain", "rows"]
    return ["plain", "bytes"] if array.itemsize > 1 else ["plain"]


def is_coding(name: Any) -> bool:
    """Whether it is the name of a coding that can be asked for."""
    return isinstance(name, str) and _ASKED.fullmatch(name) is not None


def is_lossy(name: str) -> bool:
    """Whether a filter or coding may give other numbers back."""
    return is_coding(name) and " " in name


def suits(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    """Whether a coding can be asked for arrays of this type and shape of an example."""
    if name.startswith("levels"):
        return dtype.kind == "f"
    return pictures.is_picture(shape, dtype, name)


def encoded(array: np.ndarray, name: str, level: int) -> bytes | None:
    """An array through a filter and zstandard; None where the filter loses something.

    Args:
        array: (examples, ...), of a type in `KINDS`.
        name: of the filter or coding.
        level: of zstandard, 1 to 22.
    """
    if is_coding(name):
        made = _to_levels if name.startswith("levels") else pictures.drawn
        return _packed(made(array, name), level)
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
    return _packed(np.ascontiguousarray(array).tobytes(), level)


def _packed(data: bytes, level: int) -> bytes:
    pack = zstandard.ZstdCompressor(level=level, write_checksum=True)
    return pack.compress(data)


def _to_levels(array: np.ndarray, name: str) -> bytes:
    bits = int(name.split()[1])
    if not np.isfinite(array).all():
        raise DataError(f"{name!r}: levels are of finite numbers, and some are not.")
    low, high = float(array.min()), float(array.max())
    step = (high - low) / (2**bits - 1) or 1.0
    codes = np.rint((array.astype("float64") - low) / step).astype(f"<u{bits // 8}")
    return _RANGE.pack(low, step) + codes.tobytes()


def decoded(data: bytes, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What `encoded` was given.

    Raises:
        FormatError: for bytes that are damaged or of another size.
    """
    dtype = np.dtype(dtype)
    if is_coding(name) and not name.startswith("levels"):
        return pictures.undrawn(_unpacked(data, None), name, shape)
    if name.startswith("levels"):
        stored = np.dtype(f"<u{int(name.split()[1]) // 8}")
        raw = _unpacked(data, math.prod(shape) * stored.itemsize + _RANGE.size)
        low, step = _RANGE.unpack_from(raw)
        codes: np.ndarray = np.frombuffer(raw, stored, offset=_RANGE.size)
        return np.asarray(low + step * codes.reshape(shape), dtype)
    stored = np.dtype("uint8") if name.startswith("of 255") else dtype
    raw = _unpacked(data, math.prod(shape) * stored.itemsize)
    if name == "bytes":
        planes = np.frombuffer(raw, "uint8").reshape(dtype.itemsize, -1)
        raw = np.ascontiguousarray(planes.T).tobytes()
    array: np.ndarray = np.frombuffer(raw, stored).reshape(shape)
    if name.endswith("rows"):
        array = array.copy()
        for row in range(1, shape[1]):  # faster than np.add.accumulate
            array[:, row] += array[:, row - 1]
    return _OF_255[array] if name.startswith("of 255") else array


def _unpacked(data: bytes, size: int | None) -> bytes:
    """A frame of zstandard of a known size; None for any that a block may have."""
    try:
        # No more than was announced is ever made of it.
        announced = zstandard.frame_content_size(data)
        if not (announced == size or (size is None and 0 <= announced <= _MOST)):
            raise FormatError("a block has another size than its file says")
        unpack = zstandard.ZstdDecompressor()
        return unpack.decompress(data, max_output_size=max(announced, 1))
    except zstandard.ZstdError as error:
        raise FormatError(f"a block is damaged ({error})") from error


_MOST = MAX_BLOCK_BYTES
_OF_255 = np.arange(256, dtype="float32") / np.float32(255)


def _whole(array: np.ndarray) -> np.ndarray | None:
    """Values of 0, 1/255, ... 1 as their numerators; None if one is another value."""
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        return None
    whole = np.rint(array * 255).astype("uint8")
    same = _OF_255[whole].view("uint32") == array.view("uint32")
    return whole if same.all() else None
