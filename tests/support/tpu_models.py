"""Models that the TPU check builds by name in its own process."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("tests")
class Eigenvalues(keras.layers.Layer):
    """Adds the eigenvalues of a matrix that is not symmetric: not on TPUs."""

    def call(self, x):
        square = ops.matmul(ops.transpose(x), x)
        if keras.backend.backend() == "jax":
            import jax.numpy as jnp

            return x + ops.cast(ops.real(jnp.linalg.eigvals(square)), x.dtype)
        import tensorflow as tf

        return x + tf.math.real(tf.linalg.eigvals(square))


def with_eigenvalues():
    """A nested model with an operation that TPUs do not have."""
    inputs = keras.Input((8,))
    inner = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(8), Eigenvalues(name="spectrum")],
        name="inner",
    )
    model = keras.Model(inputs, keras.layers.Dense(3)(inner(inputs)))
    model.compile("adam", "mse")
    return model


def wide():
    """Small weights, large activations: the batch decides whether it fits."""
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(8192, activation="gelu"),
            keras.layers.Dense(8192, activation="gelu"),
            keras.layers.Dense(4),
        ]
    )
    model.compile("sgd", "mse")
    return model
