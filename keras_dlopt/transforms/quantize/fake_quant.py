"""The asymmetric fake-quantization function, fused on TensorFlow."""

from typing import Any

import keras
from keras import ops

from keras_dlopt.transforms.straight_through import straight_through

# Below this a range holds nothing: all of it is one level.
_SMALLEST = 1e-6


def fake_quant(x: Any, low: Any, high: Any, *, bits: int) -> Any:
    """`x` rounded to 2^bits levels between `low` and `high`, 0 being one of them.

        scale = (high - low) / (2^bits - 1),   zero = round(-low / scale)
        x_q = (clip(round(x / scale) + zero, 0, 2^bits - 1) - zero) * scale

    Args:
        x: float tensor of any shape.
        low: scalar tensor, at most 0.
        high: scalar tensor, at least 0.
        bits: 2 to 16.

    Returns:
        A tensor like `x`. The gradient is 1 inside the range and 0 outside.
    """
    high = ops.maximum(high, low + _SMALLEST)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # One kernel instead of six, and the form that the LiteRT converter reads.
        y = tf.quantization.fake_quant_with_min_max_vars(
            tf.cast(x, "float32"), low, high, num_bits=bits
        )
        return tf.cast(y, x.dtype)
    levels = 2**bits - 1
    scale = (high - low) / levels
    zero = ops.clip(ops.floor(-low / scale + 0.5), 0, levels)
    bottom, top = -zero * scale, (levels - zero) * scale
    clipped = ops.clip(ops.cast(x, "float32"), bottom, top)

    def rounded(v):
        return ops.floor((v - bottom) / scale + 0.5) * scale + bottom

    return ops.cast(straight_through(rounded, clipped), x.dtype)


def batch_range(x: Any) -> tuple[Any, Any]:
    """The smallest and the largest value of `x` over the whole global batch.

    Under a `tf.distribute` strategy each replica holds a part of the batch; the ends
    are taken over all of them, so the range does not depend on their number.
    """
    x = ops.stop_gradient(ops.cast(x, "float32"))
    smallest, largest = ops.min(x), ops.max(x)
    if keras.backend.backend() != "tensorflow":
        return smallest, largest
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return smallest, largest
    # all_reduce knows only sum and mean, so all ends are gathered.
    ends = replica.all_gather(ops.reshape(ops.stack([-smallest, largest]), (1, 2)), 0)
    ends = ops.max(ends, axis=0)
    return -ends[0], ends[1]
