"""One replica or several of a TensorFlow strategy, and what they add up."""

from collections.abc import Callable
from typing import Any

from keras_dlopt import _compat
from keras_dlopt.runtime.pure import on_tensorflow
from keras_dlopt.runtime.values import Assignable, native


def has_strategy() -> bool:
    """Whether a TensorFlow distribution strategy is in force."""
    if not on_tensorflow():
        return False
    import tensorflow as tf

    return bool(tf.distribute.has_strategy())


def replica_count() -> int:
    """The replicas of the strategy in force; 1 without one."""
    if not has_strategy():
        return 1
    import tensorflow as tf

    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def _context() -> Any:
    """The replica that this runs in, if it is one of several."""
    if not on_tensorflow():
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    alone = context is None or context.num_replicas_in_sync == 1
    return None if alone else context


def on_several() -> bool:
    """Whether this runs in one of several replicas."""
    return _context() is not None


def total(tensors: Any) -> Any:
    """The sum over the replicas of a tensor, or of each in a list."""
    context = _context()
    if context is None:
        return tensors
    import tensorflow as tf

    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)


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


def sum_repeats(gradient: Any) -> Any:
    """A sparse gradient with each row once, the sum of its occurrences.

    A rule that squares what it is given would square each occurrence else. XLA knows no
    sets of unknown size: there the gradient becomes a tensor.
    """
    if not is_sparse(gradient):
        return gradient
    if _compat.in_xla():
        return densify(gradient)
    import tensorflow as tf

    rows, places = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, places, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def on_each_replica(
    update: Callable[..., None],
    grads: list[Any],
    scalars: Any,
    variables: Any,
    *,
    add: Callable[[list[Any]], list[Any]] = total,
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
        add: the replicas' sum of the gradients, where there are several.
    """
    if not has_strategy():
        update(grads, scalars, variables)
        return
    import tensorflow as tf

    def across(strategy: Any, grads: Any, scalars: Any) -> Any:
        strategy.extended.update(
            tf.nest.flatten(variables)[0],
            lambda _, *local: update(*local),
            args=(grads, scalars, variables),
            group=False,
        )

    context = tf.distribute.get_replica_context()
    if context is None:
        across(tf.distribute.get_strategy(), grads, scalars)
        return
    if grads and on_several():
        grads = add(grads)
    context.merge_call(across, args=(grads, scalars))


def assign_on_each(variables: list[Assignable], values: list[Any]) -> None:
    """Assigns each replica's values to its own part of the variables."""

    def across(strategy: Any, values: Any) -> Any:
        for variable, new in zip(variables, values, strict=True):
            strategy.extended.update(
                native(variable), lambda v, x: v.assign(x), args=(new,), group=False
            )

    context = _context()
    if context is not None:
        context.merge_call(across, args=(values,))
        return
    for variable, new in zip(variables, values, strict=True):
        variable.assign(new)


def gathered(tensor: Any) -> Any:
    """The rows of all replicas, in their order; gradients go back to each."""
    context = _context()
    return tensor if context is None else context.all_gather(tensor, axis=0)
