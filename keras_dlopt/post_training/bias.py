"""Bias correction: taking out the mean error that rounding leaves in each channel."""

from typing import Any

import numpy as np

from keras_dlopt.errors import ConfigError
from keras_dlopt.post_training.data import Batches
from keras_dlopt.post_training.linear import (
    channel_means,
    fused_normalization,
    linear_layers,
)
from keras_dlopt.transforms import TransformedModel
from keras_dlopt.transforms.host import to_numpy
from keras_dlopt.transforms.quantize.tracing import trace


def correct_bias(
    model: TransformedModel,
    data: Any,
    *,
    batch_size: int = 64,
    limit: int = 512,
    example: Any = None,
) -> int:
    """Shifts biases so that every channel has the mean it has in float, in place.

    For each convolution and dense layer, in order, each seeing the corrected ones
    before it:

        bias <- bias - (E[quantized output] - E[float output])   before the activation

    A layer without a bias whose output a BatchNormalization takes has the moving mean
    shifted instead, which is the same. Others stay.

    Args:
        model: what `quantize` returned, with its ranges set.
        data: examples without labels.
        batch_size: for arrays.
        limit: how many examples are used at most.
        example: a batch of inputs, for models that do not know their input's shape.

    Returns:
        How many layers were corrected.

    Raises:
        ConfigError: for a model without transforms.
        DataError: for data that is empty or does not fit the model.

    Source: Nagel et al., "Data-Free Quantization" (arXiv:1906.04721), section 4.2 and
    appendix D (the empirical form).
    """
    if not isinstance(model, TransformedModel):
        raise ConfigError(
            "correct_bias compares a TransformedModel with the float model in it. "
            f"Received: {type(model).__name__}."
        )
    batches = Batches(model.model, data, batch_size=batch_size, limit=limit)
    graph = trace(model.model, example)
    layers = [found.layer for found in linear_layers(model.model, graph)]
    wanted = channel_means(model.model, batches, layers)
    corrected = 0
    for layer, mean in zip(layers, wanted, strict=True):
        normalization = fused_normalization(graph, layer)
        if not layer.use_bias and normalization is None:
            continue
        (got,) = channel_means(model, batches, [layer])
        error = (got - mean).astype("float32")
        if layer.use_bias:
            layer.bias.assign(to_numpy(layer.bias) - error)
        else:
            shifted = to_numpy(normalization.moving_mean) + error
            normalization.moving_mean.assign(np.asarray(shifted, "float32"))
        corrected += 1
    return corrected
