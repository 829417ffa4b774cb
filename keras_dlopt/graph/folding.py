"""Folding BatchNormalization into the convolution or dense layer before it."""

from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ModelError
from keras_dlopt.graph.linear import fused_normalization, linear_layers
from keras_dlopt.graph.trace import trace
from keras_dlopt.transforms.host import to_numpy


def fold_batch_normalization(model: keras.Model) -> keras.Model:
    """The same function with BatchNormalization multiplied into the kernels before it.

        kernel' = kernel * gamma / sqrt(variance + epsilon)
        bias'   = beta + (bias - mean) * gamma / sqrt(variance + epsilon)

    For inference and for post-training methods that look at kernels as they act; to
    train, keep the layer. Normalizations that follow anything but a convolution or
    dense layer stay, as do those that are used twice, that normalize another axis than
    the last one, and those inside nested models.

    Args:
        model: a built Sequential or Functional model; it stays as it is.

    Returns:
        A new Functional model.

    Raises:
        ModelError: for a subclassed model, or one whose layers cannot be rebuilt.

    Source: Jacob et al. (arXiv:1712.05877), section 3.2, equation 14.
    """
    source = _functional(model)
    graph = trace(source)
    direct = {layer.name for layer in source.layers}
    pairs = {}
    for found in linear_layers(source, graph):
        normalization = fused_normalization(graph, found.layer)
        if normalization is None or not activation_free(found.layer):
            continue
        if found.path in direct and normalization.name in direct:
            pairs[found.layer.name] = (found, normalization)
    dropped = {normalization.name for _, normalization in pairs.values()}

    def plain(layer):
        config = layer.get_config()
        if layer.name in pairs:
            config["use_bias"] = True
        return type(layer).from_config(config)

    def call(layer, *args, **kwargs):
        return args[0] if layer.name in dropped else layer(*args, **kwargs)

    twin = _cloned(source, plain, call)
    for layer in twin.layers:
        if layer.name in pairs:
            layer.set_weights(_folded(*pairs[layer.name]))
        elif layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())
    return twin


def activation_free(layer: Any) -> bool:
    """Whether a layer ends after its bias."""
    return getattr(layer, "activation", None) in (None, keras.activations.linear)


def _functional(model: Any) -> keras.Model:
    if isinstance(model, keras.Sequential) and model.built:
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if not isinstance(model, keras.Model) or not hasattr(model, "operations"):
        raise ModelError(
            "Folding builds a Functional model anew, and takes built Sequential and "
            f"Functional models. Received: {type(model).__name__}. A subclassed model "
            "can be quantized without: per-channel kernels need neither folding nor "
            "equalization."
        )
    return model


def _cloned(model: keras.Model, plain: Any, call: Any) -> keras.Model:
    try:
        return keras.models.clone_model(model, clone_function=plain, call_function=call)
    except Exception as error:
        raise ModelError(
            f"The layers of {model.name!r} cannot be built anew from their config "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}). Give "
            "them get_config()."
        ) from error


def _folded(found: Any, normalization: Any) -> list[np.ndarray]:
    variance = to_numpy(normalization.moving_variance)
    factor = 1 / np.sqrt(variance.astype("float64") + normalization.epsilon)
    if normalization.scale:
        factor = factor * to_numpy(normalization.gamma)
    bias = to_numpy(found.layer.bias) if found.layer.use_bias else 0.0
    bias = (bias - to_numpy(normalization.moving_mean)) * factor
    if normalization.center:
        bias = bias + to_numpy(normalization.beta)
    kernel = to_numpy(found.target.variable)
    folded = scaled_outputs(found.target, kernel, factor)
    return [folded.astype(kernel.dtype), bias.astype("float32")]


def scaled_outputs(target: Any, kernel: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """A kernel with each output channel times a factor."""
    kind = type(target.layer).__name__
    if kind.startswith("Depthwise"):
        return kernel * factor.reshape(kernel.shape[-2:])
    if kind.endswith("Transpose"):
        return kernel * factor[:, None]
    return kernel * factor
