"""The coder of integers by their neighbours: pruned layers, far below order 0."""

import functools
from typing import Any

import numpy as np

from keras_dlopt.codecs import context_model as model
from keras_dlopt.codecs.reader import REPAIR, Reader, varint
from keras_dlopt.codecs.speed import compiled
from keras_dlopt.errors import FormatError

LEAST = 64  # elements that are worth it
LARGEST = 2**19  # elements at most: plain Python reads 100,000 a second
PER_BYTE = 1024  # elements that a byte of a stream may stand for: bounds the work
WORTH_COMPILING = 2**16  # elements: the compiler takes seconds when it first sees it


def strides(shape: tuple[int, ...]) -> list[int]:
    """Distances to a second row that may be near: a tap, a line of an image."""
    if len(shape) > 2:
        return [shape[-2]]
    side = int(np.sqrt(shape[0]))
    return [side, 2] if side * side == shape[0] and side > 2 else [2]


def write(codes: np.ndarray, shape: tuple[int, ...], most: int) -> bytes | None:
    """The stream of integers of an array, or None if it takes more than `most` bytes.

    Args:
        codes: flat, of absolute values below 2**31.
        shape: of the array.
        most: bytes.
    """
    best: bytes | None = None
    for stride in strides(shape):
        limit = most if best is None else len(best)
        stream = _written(codes, shape, stride, limit)
        if stream is not None and (best is None or len(stream) < len(best)):
            best = stream
    return best


def _written(
    codes: np.ndarray, shape: tuple[int, ...], stride: int, most: int
) -> bytes | None:
    columns = shape[-1]
    matrix = codes.reshape(-1, columns) != 0
    flags = matrix.any(axis=1), matrix.any(axis=0)
    coder = [0, model.MASK, 0, 0, 0, most, 0]
    _, coder, data = _run(codes, columns, stride, flags, coder, bytes(max(most, 1)))
    if coder[model.FULL]:
        return None
    body = bytes(data[: coder[model.PLACE]]) + _end(coder)
    head = varint(stride) + varint(len(body))
    small = len(head) + len(body) <= most
    return head + body if small and codes.size <= PER_BYTE * len(body) else None


def _end(coder: list[int]) -> bytes:
    """The fewest bytes that, with zeros after them, are a number in the range."""
    for size in range(4):
        unit = 1 << (32 - 8 * size)
        value = -(-coder[model.LOW] // unit) * unit
        if value <= coder[model.HIGH]:
            return value.to_bytes(5, "big")[1 : 1 + size]
    return coder[model.LOW].to_bytes(4, "big")


def read(reader: Reader, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """The next `count` integers.

    Raises:
        FormatError: if the stream is damaged.
    """
    stride = reader.varint("the stride of the rows")
    columns = shape[-1] if shape else 0
    size = reader.varint("the size of a stream")
    if not columns or not 1 <= stride <= max(count // columns, 2):
        raise FormatError(
            f"The file is damaged: rows of shape {shape} at a distance of {stride}. "
            f"{REPAIR}"
        )
    if count > min(LARGEST, PER_BYTE * size):
        raise FormatError(
            f"The file is damaged: {count} integers by their neighbours in {size} "
            f"bytes. {REPAIR}"
        )
    reader.check_temporary(16 * count, "integers by their neighbours")
    data = reader.take(size, "integers by their neighbours")
    first = int.from_bytes((data + bytes(4))[:4], "big")
    coder = [0, model.MASK, first, 4, 1, size, 0]
    rows = count // columns
    flags = np.zeros(rows, bool), np.zeros(columns, bool)
    codes = np.zeros(count, np.int64)
    codes, coder, _ = _run(codes, columns, stride, flags, coder, data)
    if coder[model.PLACE] > size + 4:
        raise FormatError(
            f"The file is damaged: {count} integers end after {size} bytes. {REPAIR}"
        )
    reader.account("values")
    return codes


def _run(
    codes: np.ndarray,
    columns: int,
    stride: int,
    flags: tuple[np.ndarray, np.ndarray],
    coder: list[int],
    data: bytes,
) -> tuple[np.ndarray, list[int], Any]:
    rows = codes.size // columns
    loops = compiled(codes.size) if codes.size >= WORTH_COMPILING else None
    every = model.CONTEXTS + columns + 1
    arrays = (
        [1 << 21] * every,
        [0] * every,
        list(model.START) * model.SETS,
        [0] * model.INPUTS,
        [0] * model.INPUTS,
        [0] * 3,
        *_tables(),
    )
    density = [0] * rows
    alive, used = (some.astype(np.int64).tolist() for some in flags)
    if loops is None:
        v, plain = codes.tolist(), bytearray(data)
        model.walk(
            v, rows, columns, stride, alive, used, density, coder, plain, *arrays
        )
        return np.array(v, np.int64), coder, plain
    numbers, state = codes.astype(np.int64), np.array(coder)
    buffer = np.frombuffer(data, np.uint8).copy()
    lists = (np.array(some, np.int64) for some in (alive, used, density))
    loops.walk(
        numbers, rows, columns, stride, *lists, state, buffer, *map(np.array, arrays)
    )
    return numbers, state.tolist(), buffer


@functools.cache
def _tables() -> tuple[list[int], list[int], list[int]]:
    return model.tables()
