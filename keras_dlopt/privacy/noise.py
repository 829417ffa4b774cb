"""Gaussian noise that is equal on all replicas, from a secret and the step."""

from typing import Any

from keras_dlopt.privacy.drawing import Secret
from keras_dlopt.runtime import on_tensorflow

_PHILOX = "philox"


def noises(secret: Secret, step: Any, shapes: list[tuple[int, ...]]) -> list[Any]:
    """Standard normal noise in float32, one tensor for each shape.

    The same seed gives another noise under XLA, which numbers its draws otherwise.

    Args:
        secret: nobody may learn it: with it the noise can be taken off.
        step: number of the step, a scalar tensor of whole numbers.
        shapes: of the tensors.
    """
    draw = _tensorflow if on_tensorflow() else _jax
    return draw(secret, step, shapes)


def _tensorflow(secret: Secret, step: Any, shapes: list[tuple[int, ...]]) -> list[Any]:
    import tensorflow as tf

    a, b, c, d = secret.words
    # 128 bits: two of the words are folded in after the first two.
    key = tf.constant([a << 31 | b >> 1, c << 31 | d >> 1], "int64")
    key = tf.random.fold_in(key, tf.cast(step, "int64"), alg=_PHILOX)
    return [
        tf.random.stateless_normal(
            shape, tf.random.fold_in(key, i, alg=_PHILOX), alg=_PHILOX
        )
        for i, shape in enumerate(shapes)
    ]


def _jax(secret: Secret, step: Any, shapes: list[tuple[int, ...]]) -> list[Any]:
    import jax
    import jax.numpy as jnp

    a, b, c, d = secret.words
    key = jnp.array([a, b], "uint32")
    for word in (c, d):
        key = jax.random.fold_in(key, word)
    key = jax.random.fold_in(key, step)
    return [
        jax.random.normal(jax.random.fold_in(key, i), shape)
        for i, shape in enumerate(shapes)
    ]
