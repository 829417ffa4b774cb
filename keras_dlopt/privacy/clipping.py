"""Gradients of single examples, cut to a length and added up.

The vectorized form: the gradient of each example by itself, all at once
(`jax.vmap`, `tf.vectorized_map`). It works for any layer.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_dlopt import runtime


def factors(squares: Any, mask: Any, clip: float) -> Any:
    """What each example's gradient is multiplied with: min(1, clip / norm).

    Args:
        squares: squared norm of each example's gradient, (batch,), float32.
        mask: 1 for examples that count, 0 for the others, (batch,).
        clip: the longest norm that is left.

    Returns:
        (batch,); 0 where the norm is not finite.
    """
    norms = ops.sqrt(ops.maximum(squares, 1e-24))
    fits = ops.isfinite(squares)
    safe = ops.where(fits, norms, ops.ones_like(norms))
    return ops.where(fits, mask * ops.minimum(1.0, clip / safe), ops.zeros_like(mask))


def finite(factor: Any, values: Any) -> Any:
    """Values of examples with a factor of 0 put to 0: they may be no numbers."""
    shape = (-1,) + (1,) * (len(values.shape) - 1)
    kept = ops.reshape(factor > 0, shape)
    return ops.where(kept, values, ops.zeros_like(values))


def clipped_sum(gradients: list[Any], mask: Any, clip: float) -> list[Any]:
    """The sum over examples of gradients cut to a length.

    Args:
        gradients: one tensor a variable, the examples first.
        mask: 1 for examples that count.
        clip: the longest norm of an example's gradient over all variables.
    """
    gradients = [ops.cast(g, "float32") for g in gradients]
    squares = [
        ops.sum(ops.reshape(g * g, (g.shape[0] or -1, _size(g))), axis=1)
        for g in gradients
    ]
    factor = factors(sum(squares), mask, clip)
    return [ops.tensordot(factor, finite(factor, g), axes=1) for g in gradients]


def _size(gradient: Any) -> int:
    size = 1
    for n in gradient.shape[1:]:
        size *= n
    return size


def mapped(function: Callable[..., Any], arguments: Any) -> Any:
    """A function of one example, of all examples at once."""
    if runtime.on_tensorflow():
        import tensorflow as tf

        return tf.vectorized_map(lambda one: function(*one), arguments)
    import jax

    return jax.vmap(function)(*arguments)


def alone(structure: Any) -> Any:
    """One example as a batch of one."""
    return keras.tree.map_structure(lambda v: ops.expand_dims(v, 0), structure)


def first(structure: Any) -> Any:
    """A batch of one as one example."""
    return keras.tree.map_structure(lambda v: ops.squeeze(v, 0), structure)
