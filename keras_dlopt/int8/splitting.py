"""Activations as layers of their own, which int8 can quantize on both sides."""

import functools
from typing import Any

import keras
from keras import layers

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.kinds import FUSED_ACTIVATIONS, LINEAR, activation_name
from keras_dlopt.graph.rebuilding import Piece, like, rebuilt
from keras_dlopt.graph.walk import as_functional, children


def split_activations(model: keras.Model) -> keras.Model:
    """The same model with sigmoid, softmax, tanh, ... as layers of their own.

    A dense or convolution layer that ends in such a function leaves no place for the
    quantizer that int8 needs between the two; ReLU is fused and stays.

    Args:
        model: a built Sequential or Functional model; it stays as it is.

    Returns:
        A new Functional model with the same weights; the new layers are named
        `<layer>_activation`.

    Raises:
        ConfigError: for a subclassed model.

    Example:
        >>> import keras
        >>> net = keras.Sequential([
        ...     keras.Input((4,)),
        ...     keras.layers.Dense(3, activation="softmax", name="dense")])
        >>> [layer.name for layer in split_activations(net).layers[1:]]
        ['dense', 'dense_activation']
    """
    source = as_functional(model)
    if source is None:
        raise ConfigError(
            "split_activations takes a built Sequential or Functional model. Received: "
            f"{model!r}. The calls inside a subclassed model cannot be changed from "
            "outside: write its activations as layers."
        )
    pieces = {
        id(layer): functools.partial(_split, layer)
        for layer in children(source)
        if isinstance(layer, LINEAR) and activation_name(layer) not in FUSED_ACTIVATIONS
    }
    return rebuilt(source, pieces)


def _split(layer: Any) -> list[Piece]:
    name = f"{layer.name}_activation"
    return [
        (like(layer, activation="linear"), layer.get_weights()),
        (layers.Activation(layer.activation, name=name), []),
    ]
