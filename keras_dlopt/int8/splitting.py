"""Activations as layers of their own, which int8 can quantize on both sides."""

from typing import Any

import keras
from keras import layers

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.kinds import (
    FUSED_ACTIVATIONS,
    LINEAR,
    activation_name,
)


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
    if isinstance(model, keras.Sequential) and model.built:
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    sources = {layer.name: layer for layer in getattr(model, "layers", ())}

    def plain(layer):
        config = layer.get_config()
        if _splits(layer):
            config["activation"] = "linear"
        return type(layer).from_config(config)

    def call(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        if not _splits(sources[layer.name]):
            return outputs
        function = sources[layer.name].activation
        return layers.Activation(function, name=f"{layer.name}_activation")(outputs)

    try:
        twin = keras.models.clone_model(model, clone_function=plain, call_function=call)
    except ValueError as error:
        raise ConfigError(
            "split_activations takes a built Sequential or Functional model. Received: "
            f"{model!r}. The calls inside a subclassed model cannot be changed from "
            "outside: write its activations as layers."
        ) from error
    for layer in twin.layers:
        if layer.name in sources:
            layer.set_weights(sources[layer.name].get_weights())
    return twin


def _splits(layer: Any) -> bool:
    return isinstance(layer, LINEAR) and (
        activation_name(layer) not in FUSED_ACTIVATIONS
    )
