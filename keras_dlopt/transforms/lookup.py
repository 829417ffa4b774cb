"""Looking values up in a small table, with a fast gradient to the table."""

from typing import Any

import keras
from keras import ops

from keras_dlopt import _compat


def fast_on_tensorflow() -> bool:
    """Whether TensorFlow runs op by op, so that hand-written gradients pay."""
    return keras.backend.backend() == "tensorflow" and not _compat.in_xla()


def lookup(
    weight: Any, table: Any, index: Any, *, on: Any = None, through: bool = False
) -> Any:
    """`table[index]` in place of `weight`.

    The gradient of a table entry is the sum over where it was used. On TensorFlow
    outside of XLA that is one weighted bincount, which runs on all cores; the segment
    sum that a gather's own gradient makes runs on one.

    Args:
        weight: float tensor, in the shape of `index`.
        table: float tensor of shape (entries,), the number known when traced.
        index: int32 tensor with values in [0, entries).
        on: float scalar, 0 or 1: 0 returns `weight`; None is always 1.
        through: whether `weight` gets the gradient of what replaces it, straight
            through; else its gradient is zero while the table is looked at.
    """
    table = ops.cast(table, weight.dtype)
    if fast_on_tensorflow():
        return _tensorflow(weight, table, index, on, through)
    # Zero, but with the gradient of the weight: exact, since w - w is 0.
    passed = weight - ops.stop_gradient(weight)
    values = ops.take(table, index) + (passed if through else 0.0 * passed)
    return values if on is None else ops.where(on > 0, values, weight)


def _tensorflow(weight, table, index, on, through):
    import tensorflow as tf

    @tf.custom_gradient
    def run(weight, table):
        def grad(upstream):
            flat = tf.reshape(tf.cast(upstream, "float32"), [-1])
            to_table = tf.raw_ops.DenseBincount(
                input=tf.reshape(index, [-1]), size=table.shape[0], weights=flat
            )
            to_table = tf.cast(to_table, table.dtype)
            if on is not None:
                to_table *= tf.cast(on, to_table.dtype)
            if through:
                return upstream, to_table
            if on is None:
                return tf.zeros_like(upstream), to_table
            return upstream * tf.cast(1.0 - on, upstream.dtype), to_table

        values = tf.gather(table, index)
        return values if on is None else tf.where(on > 0, values, weight), grad

    return run(tf.convert_to_tensor(weight), tf.convert_to_tensor(table))


def without_gradient(weight: Any, value: Any) -> Any:
    """`value`, with a gradient of zero for the `weight` that it replaces.

    A trained variable without any gradient makes Keras warn in every `fit`.
    """
    if fast_on_tensorflow():
        import tensorflow as tf

        @tf.custom_gradient
        def run(weight, value):
            return value, lambda upstream: (tf.zeros_like(weight), upstream)

        return run(tf.convert_to_tensor(weight), tf.convert_to_tensor(value))
    return value + 0.0 * (weight - ops.stop_gradient(weight))
