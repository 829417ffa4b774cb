"""Running an update once, or once on every replica of a TensorFlow strategy."""

from collections.abc import Callable
from typing import Any

import keras


def on_tensorflow() -> bool:
    """Whether Keras runs on TensorFlow."""
    return keras.backend.backend() == "tensorflow"


def has_strategy() -> bool:
    """Whether a TensorFlow distribution strategy is in force."""
    if not on_tensorflow():
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy()


def is_sparse(gradient: Any) -> bool:
    """Whether the gradient holds some rows of its variable only."""
    if not on_tensorflow():
        return False
    import tensorflow as tf

    return isinstance(gradient, tf.IndexedSlices)


def densify(gradient: Any) -> Any:
    """Sparse gradients (`tf.IndexedSlices`) as tensors; others as they are."""
    if not is_sparse(gradient):
        return gradient
    import tensorflow as tf

    return tf.convert_to_tensor(gradient)


def on_each_replica(
    update: Callable[..., None], grads: list[Any], scalars: Any, variables: Any
) -> None:
    """Calls `update(grads, scalars, variables)` with what is local to each replica.

    Gradients are summed over the replicas first, so that whatever `update` derives
    from them (clipping, finiteness, accumulation) is the same everywhere, as it is with
    one device and the whole batch.

    Args:
        update: reads and assigns the variables it is given.
        grads: one gradient per variable.
        scalars: nested tensors that are equal on all replicas.
        variables: nested native variables; the first leaf must be one.
    """
    if not has_strategy():
        update(grads, scalars, variables)
        return
    import tensorflow as tf

    def across(strategy, grads, scalars):
        anchor = next(v for v in tf.nest.flatten(variables))
        strategy.extended.update(
            anchor,
            lambda _, *local: update(*local),
            args=(grads, scalars, variables),
            group=False,
        )

    context = tf.distribute.get_replica_context()
    if context is None:
        across(tf.distribute.get_strategy(), grads, scalars)
        return
    if grads:
        grads = context.all_reduce(tf.distribute.ReduceOp.SUM, grads)
    context.merge_call(across, args=(grads, scalars))
