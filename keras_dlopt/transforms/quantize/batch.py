"""What is measured on activations, over the global batch of all replicas."""

from typing import Any

import keras
from keras import ops


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
