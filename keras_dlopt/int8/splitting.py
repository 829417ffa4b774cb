"""Activations as layers of their own, which int8 can quantize on both sides."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.kinds import FUSED_ACTIVATIONS, LINEAR, activation_name
from keras_dlopt.graph.rebuilding import Piece, like, reaches, rebuilt
from keras_dlopt.graph.walk import (
    as_functional,
    layers_below,
    numbered,
    walk,
)


def split_activations(model: keras.Model) -> keras.Model:
    """The same model with sigmoid, softmax, tanh, ... as layers of their own.

    A dense or convolution layer that ends in such a function leaves no place for the
    quantizer that int8 needs between the two; ReLU is fused and stays.

    Args:
        model: a built Sequential or Functional model; it stays as it is.

    Returns:
        A new Functional model with the same weights, nested models included; the new
        layers are named `<layer>_activation`.

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
    return rebuilt(source, split_pieces(source))


def split_pieces(model: Any) -> dict[int, Callable[[], list[Piece]]]:
    """For `rebuilt`: the layers with a fused activation that can be split.

    Those of Functional and Sequential models nested in each other; what a subclassed
    model or a layer holds stays whole.
    """
    pieces: dict[int, Callable[[], list[Piece]]] = {}
    names = {layer.name for layer in layers_below(model)}
    for _, layer, parents in walk(model):
        fused = activation_name(layer) not in FUSED_ACTIVATIONS
        if isinstance(layer, LINEAR) and fused and reaches(parents):
            name, taken = f"{layer.name}_activation", dict[str, int]()
            while (unique := numbered(name, taken)) in names:
                pass
            names.add(unique)
            pieces[id(layer)] = functools.partial(_split, layer, unique)
    return pieces


def _split(layer: Any, name: str) -> list[Piece]:
    return [
        (like(layer, activation="linear"), layer.get_weights()),
        (layers.Activation(layer.activation, name=name), []),
    ]
