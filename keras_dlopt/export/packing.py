"""Packing a .tflite model: aligned constants, and equal vectors stored once."""

from typing import Any

import numpy as np

# LiteRT reads constants in place and expects them at multiples of 16 bytes, which the
# code generated for the schema does not ask for.
_ALIGNMENT = 16
_IDENTIFIER = b"TFL3"


class AlignedBuffer:
    """A buffer of the file; stands for the schema's `BufferT`.

    Args:
        data: bytes, as an array of uint8; None for the buffer of what is computed.
        schema: the module that defines the format.
    """

    offset = size = 0

    def __init__(self, data: np.ndarray | None, schema: Any):
        self.data = data
        self._schema = schema

    def Pack(self, builder: Any) -> Any:
        """Writes it, as the schema's objects do."""
        raw, data = b"" if self.data is None else self.data.tobytes(), None
        if raw:
            builder.StartVector(1, len(raw), _ALIGNMENT)
            builder.head -= len(raw)
            builder.Bytes[builder.head : builder.head + len(raw)] = raw
            builder.vectorNumElems = len(raw)
            data = builder.EndVector()
        self._schema.BufferStart(builder)
        if data is not None:
            self._schema.BufferAddData(builder, data)
        return self._schema.BufferEnd(builder)


def nibbles(codes: np.ndarray) -> np.ndarray:
    """Integers of four bits, two a byte, the first in the lower half.

    Example:
        >>> nibbles(np.array([1, -1, 7], "int8")).tolist()
        [241, 7]
    """
    flat = np.append(codes.ravel(), np.zeros(codes.size % 2)).astype("int8")
    low, high = flat[0::2] & 15, flat[1::2] & 15
    return np.asarray(low | high << 4, "uint8")


def unpacked(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The integers that `nibbles` packed, as int8.

    Example:
        >>> unpacked(np.array([241, 7], "uint8"), (3,)).tolist()
        [1, -1, 7]
    """
    pairs = np.stack([data << 4, data], axis=-1).view("int8") >> 4
    return np.asarray(pairs.ravel()[: int(np.prod(shape))].reshape(shape))


def pack(model: Any) -> bytes:
    """A `ModelT` as the bytes of a .tflite file, equal vectors and names stored once.

    Args:
        model: its vectors are NumPy arrays, and its buffers `AlignedBuffer` objects.
    """
    import flatbuffers

    class Sharing(flatbuffers.Builder):
        def __init__(self) -> None:
            super().__init__(1 << 16)
            self.made: dict[Any, Any] = {}

        def CreateNumpyVector(self, x: Any) -> Any:
            key = (x.dtype.str, x.tobytes())
            if key not in self.made:
                self.made[key] = super().CreateNumpyVector(x)
            return self.made[key]

        def CreateString(self, s: Any, *args: Any, **kwargs: Any) -> Any:
            if s not in self.made:
                self.made[s] = super().CreateString(s, *args, **kwargs)
            return self.made[s]

    builder = Sharing()
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())
