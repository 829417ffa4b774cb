"""Measuring the statistics of BatchNormalization anew, with quantized weights."""

from typing import Any

import keras

from keras_dlopt.errors import ModelError
from keras_dlopt.graph.linear import inner
from keras_dlopt.post_training.data import Batches
from keras_dlopt.transforms import TransformedModel
from keras_dlopt.transforms.quantize.batch_norm import normalizations


def recalibrate_batch_normalization(
    model: keras.Model, data: Any, *, batch_size: int = 128
) -> int:
    """Replaces moving statistics by the mean over the data, in place.

    Runs the model over the data in training mode, each batch weighing the same. Few
    steps of training, pruning or rounding leave moving averages behind the weights;
    this takes one pass and no labels. Ranges of activation quantizers stay.

    Args:
        model: a Keras model, or what `transform` or `quantize` returned.
        data: examples without labels, some batches of them.
        batch_size: for arrays; large, since the statistics are those of the batches.

    Returns:
        How many layers were measured.

    Raises:
        ModelError: for a model without BatchNormalization.
        DataError: for data that is empty or does not fit the model.

    Source: Sun et al., "Hybrid 8-bit Floating Point Training" (NeurIPS 2019), section
    2.2; Nagel et al. (arXiv:2106.08295), section 4.2.2.
    """
    batches = Batches(inner(model), data, batch_size=batch_size)
    layers = normalizations(inner(model))
    if not layers:
        raise ModelError(f"{model.name!r} has no BatchNormalization to measure.")
    momenta = [(layer.momentum, layer.trainable) for layer in layers]
    kept = _ranges(model)
    try:
        for layer in layers:
            layer.trainable = True  # a frozen one would not look at the data
        for number, batch in enumerate(batches):
            for layer in layers:
                layer.momentum = number / (number + 1)
            model(batch, training=True)
    finally:
        for layer, (momentum, trainable) in zip(layers, momenta, strict=True):
            layer.momentum, layer.trainable = momentum, trainable
        for slot, values in kept:
            for name, value in values.items():
                slot.write(name, value)
    return len(layers)


def _ranges(model: Any) -> list[tuple[Any, dict]]:
    """The state of all transforms, to put back."""
    if not isinstance(model, TransformedModel):
        return []
    return [(slot, slot.arrays()) for group in model.groups for slot in group.slots]
