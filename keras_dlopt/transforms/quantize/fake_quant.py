"""The asymmetric fake-quantization function, fused on TensorFlow."""

from typing import Any

import keras
from keras import ops

from keras_dlopt.transforms.quantize.gradients import custom_gradient
from keras_dlopt.transforms.quantize.grids import IntegerGrid, wide


def fake_quant(
    x: Any, low: Any, high: Any, *, bits: int, narrow_range: bool = False
) -> Any:
    """`x` rounded to 2^bits levels between `low` and `high`, 0 being one of them.

        scale = (high - low) / (2^bits - 1),   zero = round(-low / scale)
        x_q = (clip(round(x / scale) + zero, 0, 2^bits - 1) - zero) * scale

    Args:
        x: float tensor of any shape.
        low: scalar tensor, at most 0.
        high: scalar tensor, at least 0.
        bits: 2 to 16.
        narrow_range: whether to use one level less.

    Returns:
        A tensor like `x`. The gradient is 1 inside the range and 0 outside.
    """
    high = wide(low, high, ops)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # One kernel instead of six, and the form that the LiteRT converter reads.
        y = tf.quantization.fake_quant_with_min_max_vars(
            tf.cast(x, "float32"), low, high, num_bits=bits, narrow_range=narrow_range
        )
        return tf.cast(y, x.dtype)
    grid = IntegerGrid(bits, symmetric=False, narrow=narrow_range)
    scale, lowest, highest = grid.fit(low, high, ops)
    bottom, top = lowest * scale, highest * scale
    clipped = ops.clip(ops.cast(x, "float32"), bottom, top)

    def run(v):
        rounded = ops.floor((v - bottom) / scale + 0.5) * scale + bottom
        return rounded, lambda upstream: upstream

    return ops.cast(custom_gradient(run, clipped), x.dtype)
