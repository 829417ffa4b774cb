"""Bias correction: taking out what rounding does to each channel's mean and spread."""

import base64
import hashlib
from typing import Any

import numpy as np

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.kinds import ends_linear
from keras_dlopt.graph.linear import (
    Moments,
    channel_moments,
    fused_normalization,
    linear_layers,
)
from keras_dlopt.graph.trace import trace
from keras_dlopt.post_training.data import Batches
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.transforms import TransformedModel


def corrections(model: Any) -> dict[int, np.ndarray]:
    """What `correct_bias` changed in a model and nothing changed since.

    The model carries it as (place in `model.model.variables`, value before, digest of
    the value after), and it is saved with the model. What does not fit is left out.

    Returns:
        The values before, by place.
    """
    variables = model.model.variables
    found = {}
    for place, before, digest in model.corrections:
        if not 0 <= place < len(variables):
            continue
        now = to_numpy(variables[place])
        if _digest(now) == digest:
            data = base64.b64decode(before)
            found[place] = np.frombuffer(data, now.dtype).reshape(now.shape)
    return found


def _digest(value: np.ndarray) -> str:
    return hashlib.blake2b(value.tobytes(), digest_size=8).hexdigest()


def correct_bias(
    model: TransformedModel,
    data: Any,
    *,
    batch_size: int = 64,
    limit: int = 512,
    example: Any = None,
) -> int:
    """Gives every channel the mean and spread that it has in float, in place.

    For each convolution and dense layer, in order, each seeing the corrected ones
    before it, with f and q its outputs before the activation in float and quantized:
    where a BatchNormalization takes them,

        r = std(q) / std(f), within [1/2, 2]
        moving_mean <- E[q] - r (E[f] - moving_mean)
        moving_variance + epsilon <- r^2 (moving_variance + epsilon)

    so that the normalized output has the moments of the float one. Elsewhere, where
    there is a bias, the mean alone:

        bias <- bias - (E[q] - E[f])

    Other layers stay. A correction that was made before is taken back first, also one
    that was loaded with the model.

    The spread matters at few bits: a grid with least squared error makes outputs
    smaller, layer after layer, and means of full size added to those pull all
    decisions one way.

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
    appendix D (the empirical form); mean and spread together as in Banner et al.
    (arXiv:1810.05723), section 4, there of the weights.
    """
    if not isinstance(model, TransformedModel):
        raise ConfigError(
            "correct_bias compares a TransformedModel with the float model in it. "
            f"Received: {type(model).__name__}."
        )
    batches = Batches(model.model, data, batch_size=batch_size, limit=limit)
    variables = model.model.variables
    for place, before in corrections(model).items():
        variables[place].assign(before)
    places = {id(variable): place for place, variable in enumerate(variables)}
    changes: list[tuple[int, str, str]] = []
    graph = trace(model.model, example)
    layers = [found.layer for found in linear_layers(model.model, graph)]
    wanted = channel_moments(model.model, batches, layers)
    corrected = 0
    for layer, moments in zip(layers, wanted, strict=True):
        normalization = fused_normalization(graph, layer)
        if not ends_linear(layer):
            normalization = None  # it takes something else than f and q
        if not layer.use_bias and normalization is None:
            continue
        (got,) = channel_moments(model, batches, [layer])
        if normalization is not None:
            new = _renormalized(normalization, moments, got)
        else:
            new = [(layer.bias, to_numpy(layer.bias) - (got[0] - moments[0]))]
        for variable, value in new:
            before = to_numpy(variable)
            kept = base64.b64encode(before.tobytes()).decode()
            variable.assign(value.astype(before.dtype))
            place = places[id(variable)]
            changes.append((place, kept, _digest(to_numpy(variable))))
        corrected += 1
    model.corrections = tuple(changes)
    return corrected


def _renormalized(
    layer: Any, wanted: Moments, got: Moments
) -> list[tuple[Any, np.ndarray]]:
    """Statistics that make a normalization of `got` what it was of `wanted`."""
    known = (wanted[1] > 0) & (got[1] > 0)
    ratio = np.where(known, got[1], 1.0) / np.where(known, wanted[1], 1.0)
    ratio = np.clip(ratio, 0.5, 2.0)
    mean = got[0] - ratio * (wanted[0] - to_numpy(layer.moving_mean))
    variance = to_numpy(layer.moving_variance) + layer.epsilon
    variance = np.maximum(ratio**2 * variance - layer.epsilon, 0.0)
    return [(layer.moving_mean, mean), (layer.moving_variance, variance)]
