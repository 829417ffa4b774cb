"""Elements byte by byte, each plane of bytes in the way that suits it.

Exponents of trained weights have 2 to 3 bits of entropy out of 8, while sign and
mantissa have nearly none to spare. Floats are first turned by one bit to the left, so
that the exponent comes to lie in the top byte and the sign in the lowest bit. Then
every byte of the elements, from the top one down, is a plane of its own: raw, one
value for all, or coded by a coder of symbols.
"""

from typing import ClassVar

import numpy as np

from keras_dlopt.codecs.coder import Values, whole_bytes
from keras_dlopt.codecs.dtypes import is_float
from keras_dlopt.codecs.entropy import entropy_bits
from keras_dlopt.codecs.reader import REPAIR, Reader
from keras_dlopt.codecs.speed import compiled
from keras_dlopt.codecs.symbols import CODERS, cheapest
from keras_dlopt.errors import FormatError

RAW, CONSTANT, CODED = 0, 1, 2  # methods of a plane; a coder's number is added to CODED
MANY = 2**12  # elements from which on the zeros decide
WORTH = 0.995  # of its raw size, that a coded plane may take


class ByteValues:
    """The planes of bytes; `cost` keeps the choice for `write`."""

    name: ClassVar[str] = "bytes"

    def cost(self, values: Values) -> int | None:
        bits = values.bits
        if values.constant or bits.nbytes <= 16:
            return None
        many = bits.itemsize > 1 and bits.size > MANY and values.places is None
        if many and 2 * np.count_nonzero(bits) < bits.size:
            return None  # a sparse record pays for the zeros once, not in each plane
        return int(sum(size for _, size in self._plan(values)))

    def write(self, values: Values) -> bytes:
        parts, planes = [], _planes(values.bits, values.dtype)
        for (method, _), plane in zip(
            self._plan(values)[::-1], planes[::-1], strict=True
        ):
            parts.append(bytes([method]))
            if method == RAW:
                parts.append(plane.tobytes())
            elif method == CONSTANT:
                parts.append(plane[:1].tobytes())
            else:
                parts.append(CODERS[method - CODED].write(plane))
        return b"".join(parts)

    def read(
        self, reader: Reader, count: int, dtype: np.dtype, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, None]:
        size = dtype.itemsize
        planes = np.empty((size, count), np.uint8)
        for k in reversed(range(size)):
            planes[k] = _read_plane(reader, count)
        if size == 1:
            return planes[0], None
        out, turned = np.empty(count, f"u{size}"), is_turned(dtype)
        loops = compiled(count)
        if loops is not None:
            loops.merge(planes, turned, out)
            return out, None
        columns = out.view(np.uint8).reshape(count, size)
        for k in range(size):
            columns[:, k] = planes[k]
        return (out >> 1 | out << (8 * size - 1) if turned else out), None

    def _plan(self, values: Values) -> list[tuple[int, int]]:
        """Method and bytes of each plane, the lowest first."""
        plan: list[tuple[int, int]] | None = values.cache.get(self.name)
        if plan is None:
            planes = _planes(values.bits, values.dtype)
            plan = [_best(_count(plane), plane.size) for plane in planes]
            values.cache[self.name] = plan
        return plan


def is_turned(dtype: np.dtype) -> bool:
    """Whether the elements are turned by a bit: floats with a byte of mantissa."""
    return is_float(dtype) and dtype.itemsize > 1


def counts(bits: np.ndarray) -> list[np.ndarray]:
    """How often each byte occurs, at each place in the elements; they are turned."""
    return [_count(plane) for plane in _split(bits, bits.itemsize > 1)]


def _planes(bits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A row for each byte of the elements, the lowest first."""
    return _split(bits, is_turned(dtype))


def _split(bits: np.ndarray, turned: bool) -> np.ndarray:
    size = bits.itemsize
    if size == 1:
        return bits.reshape(1, -1)
    loops = compiled(bits.size)
    if loops is not None:
        planes = np.empty((size, bits.size), np.uint8)
        loops.split(bits, turned, planes)
        return planes
    if turned:
        bits = bits << 1 | bits >> (8 * size - 1)
    little = bits.astype(bits.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little.view(np.uint8).reshape(-1, size).T)


def _count(plane: np.ndarray) -> np.ndarray:
    loops = compiled(plane.size)
    if loops is None:
        return np.bincount(plane, minlength=256)
    found: np.ndarray = loops.count(plane, 256)
    return found


def _best(counts: np.ndarray, size: int) -> tuple[int, int]:
    if int(counts.max()) == size:
        return CONSTANT, 2
    if entropy_bits(counts) < 8 * WORTH * size:
        best, bits = cheapest(counts)
        if bits < 8 * WORTH * size:
            return CODED + best, 1 + whole_bytes(bits)
    return RAW, 1 + size


def _read_plane(reader: Reader, count: int) -> np.ndarray:
    method = reader.take(1, "the method of a plane")[0]
    reader.account("header")
    if method == RAW:
        plane = np.frombuffer(reader.take(count, "a plane"), np.uint8)
        reader.account("values")
        return plane
    if method == CONSTANT:
        plane = np.frombuffer(reader.take(1, "a plane"), np.uint8)
        reader.account("values")
        return plane
    if method - CODED >= len(CODERS):
        raise FormatError(
            f"The file uses method {method} for a plane of bytes, which this version "
            f"does not know. Update keras-dlopt, or: {REPAIR}"
        )
    plane = CODERS[method - CODED].read(reader, count, "a plane")
    if int(plane.max(initial=0)) > 255:
        raise FormatError(
            f"The file is damaged: a plane of bytes holds {plane.max()}. {REPAIR}"
        )
    return plane
