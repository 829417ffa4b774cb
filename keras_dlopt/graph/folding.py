"""Folding BatchNormalization into the convolution or dense layer before it."""

import functools
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ModelError
from keras_dlopt.graph.channels import scaled_outputs
from keras_dlopt.graph.kinds import ends_linear
from keras_dlopt.graph.linear import Linear, fused_normalization, linear_layers
from keras_dlopt.graph.rebuilding import Piece, like, rebuilt
from keras_dlopt.graph.trace import trace
from keras_dlopt.graph.walk import as_functional, children
from keras_dlopt.runtime.values import to_numpy


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
    source = as_functional(model)
    if source is None:
        raise ModelError(
            "Folding builds a Functional model anew, and takes built Sequential and "
            f"Functional models. Received: {type(model).__name__}. A subclassed model "
            "can be quantized without: per-channel kernels need neither folding nor "
            "equalization."
        )
    graph = trace(source)
    direct = children(source)
    pieces: dict[int, Any] = {}
    for found in linear_layers(source, graph):
        normalization = fused_normalization(graph, found.layer)
        both = found.layer in direct and normalization in direct
        if both and ends_linear(found.layer):
            into = functools.partial(_folded, found, normalization)
            pieces |= {id(found.layer): into, id(normalization): list}
    return rebuilt(source, pieces)


def channel_factors(normalization: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a BatchNormalization in inference multiplies with and then adds, float64."""
    variance = to_numpy(normalization.moving_variance).astype("float64")
    factor = 1 / np.sqrt(variance + normalization.epsilon)
    if normalization.scale:
        factor = factor * to_numpy(normalization.gamma)
    offset = -to_numpy(normalization.moving_mean) * factor
    if normalization.center:
        offset = offset + to_numpy(normalization.beta)
    return factor, offset


def _folded(found: Linear, normalization: Any) -> list[Piece]:
    factor, offset = channel_factors(normalization)
    if found.layer.use_bias:
        offset = offset + to_numpy(found.layer.bias) * factor
    kernel = to_numpy(found.target.variable)
    folded = scaled_outputs(found.target, kernel, factor)
    weights = [folded.astype(kernel.dtype), offset.astype("float32")]
    return [(like(found.layer, use_bias=True), weights)]
