"""Variables that callbacks keep beside a model."""

import contextlib
from typing import Any

import keras
import numpy as np
from keras import ops


def host(variable: keras.Variable) -> np.ndarray:
    """The value of a variable, mirrored or not, as a NumPy array."""
    return np.asarray(ops.convert_to_numpy(variable.value))


def read(variable: keras.Variable) -> Any:
    """The value of a variable now, as a tensor that later assignments leave alone.

    `ops.convert_to_tensor` hands a Keras variable back as it is on TensorFlow.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.identity(variable.value)
    return variable.value


def make_slot(model: keras.Model, value: Any) -> keras.Variable:
    """A float32 variable on the model's devices that the model does not track."""
    strategy = getattr(model, "distribute_strategy", None)
    scope = strategy.scope() if strategy is not None else contextlib.nullcontext()
    with scope:
        return keras.Variable(
            np.asarray(value, "float32"),
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name="dlopt_state",
        )


def index_of(variables: list[keras.Variable], wanted: keras.Variable) -> int:
    """Where a variable stands in a list, by identity."""
    return next(i for i, variable in enumerate(variables) if variable is wanted)
