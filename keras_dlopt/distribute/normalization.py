"""Batch normalization over the batch of all replicas."""

from typing import Any

import keras

from keras_dlopt.errors import ModelError
from keras_dlopt.graph.walk import layers_below


def unsynchronized(model: keras.Model) -> list[Any]:
    """The BatchNormalization layers that see one replica's share of a batch only."""
    every = layers_below(model, keras.layers.BatchNormalization)
    return [layer for layer in every if not layer.synchronized]


def synchronize(model: keras.Model) -> keras.Model:
    """Has every BatchNormalization layer use the statistics of the whole batch.

    Weights, names and the saved moving statistics stay; `save` writes the layers as
    `synchronized=True`. On one device nothing changes but rounding: synchronized layers
    compute the variance as E[x^2] - E[x]^2.

    Args:
        model: any Keras model, before its first `fit`.

    Returns:
        `model`.

    Raises:
        ModelError: if the model has traced its train function already.

    Example:
        >>> import keras
        >>> net = keras.Sequential([keras.layers.BatchNormalization()])
        >>> synchronize(net).layers[0].synchronized
        True
    """
    if getattr(model, "train_function", None) is not None:
        raise ModelError(
            f"The model {model.name!r} has trained already and its train function is "
            "made. Call synchronize before fit(), or compile the model anew first."
        )
    for layer in unsynchronized(model):
        layer.synchronized = True
    return model
