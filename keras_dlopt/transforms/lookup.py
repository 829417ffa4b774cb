"""Looking values up in a small table, with a fast gradient to the table."""

from typing import Any

import keras
from keras import ops

from keras_dlopt import _compat


def lookup(table: Any, index: Any) -> Any:
    """`table[index]`; the gradient of an entry is the sum over where it was used.

    On TensorFlow outside of XLA the sum is one weighted bincount, which runs on all
    cores; the segment sum that a gather's own gradient makes runs on one.

    Args:
        table: float tensor of shape (entries,), the number known when traced.
        index: int32 tensor of any shape, with values in [0, entries).
    """
    if keras.backend.backend() != "tensorflow" or _compat.in_xla():
        return ops.take(table, index)
    import tensorflow as tf

    @tf.custom_gradient
    def run(table):
        def grad(upstream):
            return tf.raw_ops.DenseBincount(
                input=tf.reshape(index, [-1]),
                size=table.shape[0],
                weights=tf.reshape(upstream, [-1]),
            )

        return tf.gather(table, index), grad

    return run(tf.convert_to_tensor(table))
