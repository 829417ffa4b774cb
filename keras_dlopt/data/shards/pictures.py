"""Images as PNG, WebP or JPEG: the images of a block side by side in large pictures.

A file of its own would cost a small image more than its pixels do. Each image has a
cell of the picture, in formats with loss up to the next 16 pixels, so that none bleeds
into another.
"""

import io
import math
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from keras_dlopt.errors import FormatError

LARGEST_SIDE = 4096  # of a picture with several images
# What the formats allow a picture with one.
MOST = {"png": 1 << 20, "webp": 16_383, "jpeg": 65_500}


def is_picture(shape: tuple[int, ...], dtype: np.dtype, name: str) -> bool:
    """Whether images of this shape and type can be coded so."""
    colors = shape[2] if len(shape) == 3 else 1
    sides = _cell(shape[:2], name) if len(shape) in (2, 3) else (0,)
    return (
        dtype == np.uint8
        and len(shape) in (2, 3)
        and colors in (1, 3)
        and 0 < min(sides) <= max(sides) <= MOST[name.split()[0]]
    )


def _cell(size: tuple[int, ...], name: str) -> tuple[int, ...]:
    step = 16 if " " in name else 1  # a quality: there is loss
    return tuple(-(-side // step) * step for side in size)


def _grids(count: int, cell: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Images, rows and columns of each picture."""
    most = [max(1, LARGEST_SIDE // side) for side in cell]
    while count:
        columns = min(most[1], math.isqrt(count - 1) + 1)
        rows = min(most[0], -(-count // columns))
        taken = min(count, rows * columns)
        yield taken, rows, columns
        count -= taken


def drawn(images: np.ndarray, name: str) -> bytes:
    """Images as pictures, each after its length.

    Args:
        images: (n, height, width) or (n, height, width, 1 or 3), uint8.
        name: of the format, and the quality where there is loss: `"jpeg 90"`.
    """
    cell = _cell(images.shape[1:3], name)
    colors = images.reshape(*images.shape[:3], -1)
    margins = [(0, c - s) for c, s in zip(cell, images.shape[1:3], strict=True)]
    padded = np.pad(colors, [(0, 0), *margins, (0, 0)], mode="edge")
    out, at = io.BytesIO(), 0
    for taken, rows, columns in _grids(len(images), cell):
        sheet = np.zeros((rows * columns, *cell, colors.shape[3]), "uint8")
        sheet[:taken] = padded[at : at + taken]
        sheet = sheet.reshape(rows, columns, *cell, -1).swapaxes(1, 2)
        sheet = sheet.reshape(rows * cell[0], columns * cell[1], -1)
        data = _file(sheet, name)
        out.write(struct.pack("<Q", len(data)) + data)
        at += taken
    return out.getvalue()


def _file(sheet: np.ndarray, name: str) -> bytes:
    kind, *quality = name.split()
    memory = io.BytesIO()
    picture = Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet)
    if kind == "png":
        picture.save(memory, "PNG", optimize=True)
    elif kind == "jpeg":
        picture.save(memory, "JPEG", quality=int(quality[0]), subsampling=0)
    elif quality:
        picture.save(memory, "WEBP", quality=int(quality[0]), method=6)
    else:
        picture.save(memory, "WEBP", lossless=True, quality=100, method=4)
    return memory.getvalue()


def undrawn(data: bytes, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The images of a shape that `drawn` was given.

    Raises:
        FormatError: for pictures that are damaged or of another size.
    """
    cell, colors = _cell(shape[1:3], name), shape[3] if len(shape) == 4 else 1
    parts, at = [], 0
    for taken, rows, columns in _grids(shape[0], cell):
        if len(data) < at + 8:
            raise FormatError("a block lacks a picture")
        (length,) = struct.unpack_from("<Q", data, at)
        size = (columns * cell[1], rows * cell[0])
        sheet = _pixels(data[at + 8 : at + 8 + length], name, size, colors)
        at += 8 + length
        cells = sheet.reshape(rows, cell[0], columns, cell[1], colors).swapaxes(1, 2)
        cells = cells.reshape(-1, *cell, colors)[:taken]
        parts.append(cells[:, : shape[1], : shape[2]])
    if at != len(data):
        raise FormatError("a block has more pictures than it says")
    return np.concatenate(parts).reshape(shape)


def _pixels(data: bytes, name: str, size: tuple[int, int], colors: int) -> np.ndarray:
    kind = name.split()[0].upper()
    try:
        # Its size is read before any pixel is.
        with Image.open(io.BytesIO(data), formats=[kind]) as picture:
            if picture.size != size:
                raise FormatError(f"a picture is of {picture.size}, not {size}")
            return np.asarray(picture.convert("L" if colors == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FormatError(f"a picture is damaged ({error})") from error
