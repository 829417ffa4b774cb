"""Fake quantization of weights: a symmetric grid, one scale per output channel."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.codecs.hints import Grid
from keras_dlopt.errors import ConfigError
from keras_dlopt.select import Target
from keras_dlopt.transforms.base import Transform
from keras_dlopt.transforms.straight_through import straight_through


def check_bits(bits: int) -> int:
    """Returns `bits` if it is a whole number from 2 to 16, or raises `ConfigError`."""
    if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 16:
        raise ConfigError(
            f"bits must be a whole number from 2 to 16. Received: {bits!r}. "
            "LiteRT runs 8 bits (weights also 4); fewer make smaller files."
        )
    return bits


def channel_axes(target: Target, rank: int) -> tuple[int, ...]:
    """The axes of a kernel that count output channels.

    Keras keeps them last, but for depthwise kernels (height, width, channels,
    multiplier) and transposed ones (height, width, outputs, inputs).
    """
    kind = type(target.layer).__name__
    if target.name == "depthwise_kernel" or (
        kind.startswith("Depthwise") and target.name == "kernel"
    ):
        return (rank - 2, rank - 1)
    return (rank - 2,) if kind.endswith("Transpose") else (rank - 1,)


@keras.saving.register_keras_serializable("keras_dlopt")
class FakeQuant(Transform):
    """Rounds a weight to a symmetric integer grid, straight-through in training.

    With q = 2^(bits-1) - 1 and the largest magnitude m of each channel:

        scale = m / q,   code = round(w / scale) in [-q, q],   w_q = code * scale

    The range follows the weight at every step, so no code is ever clipped and the
    gradient passes unchanged. Zero stays zero.

    State: none.

    Args:
        bits: 2 to 16.
        per_channel: one scale per output channel; False for one scale a weight (also
            used for weights with fewer than two dimensions).

    Raises:
        ConfigError: for bits outside 2..16.

    Example:
        >>> import numpy as np
        >>> from keras_dlopt.select import Target
        >>> w = np.array([[0.5], [-1.0], [0.2]], "float32")
        >>> FakeQuant(bits=2).evaluate(Target("kernel"), w, {}).ravel().tolist()
        [0.0, -1.0, 0.0]

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (arXiv:1712.05877), section 3; per channel as in
    Krishnamoorthi (arXiv:1806.08342), section 3.
    """

    def __init__(self, *, bits: int = 8, per_channel: bool = True):
        self.bits = check_bits(bits)
        self.per_channel = per_channel

    @property
    def limit(self) -> int:
        """The largest code, 2^(bits-1) - 1."""
        return 2 ** (self.bits - 1) - 1

    def _reduced(self, target: Target, rank: int) -> tuple[int, ...]:
        if not self.per_channel or rank < 2:
            return tuple(range(rank))
        kept = channel_axes(target, rank)
        return tuple(a for a in range(rank) if a not in kept)

    def apply(self, weight, state, context):
        axes = self._reduced(context.target, len(weight.shape))

        def rounded(w):
            largest = ops.max(ops.abs(w), axis=axes, keepdims=True)
            scale = ops.where(largest > 0, largest, 1.0) / self.limit
            return ops.round(w / scale) * scale

        return straight_through(rounded, weight)

    def scale(self, target: Target, weight: np.ndarray) -> np.ndarray:
        """The step between levels, float32, broadcastable to the weight."""
        axes = self._reduced(target, weight.ndim)
        largest = np.abs(weight).max(axis=axes, keepdims=True, initial=0)
        scale: Any = np.where(largest > 0, largest, 1) / np.float32(self.limit)
        return scale.astype("float32")

    def finalize(self, target, weight, state):
        scale = self.scale(target, weight)
        codes = np.rint(weight / scale).astype("int32")
        value = (codes * scale).astype(weight.dtype)
        return value, Grid(codes=codes, scale=scale)
