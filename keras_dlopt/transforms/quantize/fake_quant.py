"""The asymmetric fake-quantization function, fused on TensorFlow."""

from typing import Any

import keras
from keras import ops

from keras_dlopt.transforms.quantize.grids import SMALLEST, IntegerGrid
from keras_dlopt.transforms.straight_through import straight_through


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
    high = ops.maximum(high, low + SMALLEST)
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

    def rounded(v):
        return ops.floor((v - bottom) / scale + 0.5) * scale + bottom

    return ops.cast(straight_through(rounded, clipped), x.dtype)


def replica_values(x: Any) -> Any:
    """The values of the whole global batch, flat, without gradient.

    Under a `tf.distribute` strategy each replica holds a part of the batch, and all
    parts are gathered.
    """
    x = ops.reshape(ops.stop_gradient(ops.cast(x, "float32")), (-1,))
    replica = _replica()
    return x if replica is None else replica.all_gather(x, 0)


def replica_mean(x: Any) -> Any:
    """The mean over the replicas of a tensor."""
    replica = _replica()
    if replica is None:
        return x
    import tensorflow as tf

    return replica.all_reduce(tf.distribute.ReduceOp.MEAN, x)


def batch_range(x: Any) -> tuple[Any, Any]:
    """The smallest and the largest value of `x` over the whole global batch.

    Under a `tf.distribute` strategy each replica holds a part of the batch; the ends
    are taken over all of them, so the range does not depend on their number.
    """
    x = ops.stop_gradient(ops.cast(x, "float32"))
    smallest, largest = ops.min(x), ops.max(x)
    replica = _replica()
    if replica is None:
        return smallest, largest
    # all_reduce knows only sum and mean, so all ends are gathered.
    ends = replica.all_gather(ops.reshape(ops.stack([-smallest, largest]), (1, 2)), 0)
    ends = ops.max(ends, axis=0)
    return -ends[0], ends[1]


def _replica() -> Any:
    """TensorFlow's replica context if there are several replicas, else None."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return None
    return replica
