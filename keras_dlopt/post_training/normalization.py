"""Measuring the statistics of BatchNormalization anew, with quantized weights."""

import contextlib
from typing import Any

import keras

from keras_dlopt.errors import ModelError
from keras_dlopt.graph.normalization import measure_normalization
from keras_dlopt.graph.walk import layers_below
from keras_dlopt.post_training.data import Batches
from keras_dlopt.transforms import TransformedModel


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
    plain = model.model if isinstance(model, TransformedModel) else model
    batches = Batches(plain, data, batch_size=batch_size)
    if not layers_below(plain, keras.layers.BatchNormalization):
        raise ModelError(f"{model.name!r} has no BatchNormalization to measure.")
    with contextlib.ExitStack() as stack:
        for slot, values in _ranges(model):
            for name, value in values.items():
                stack.callback(slot.write, name, value)
        return measure_normalization(model, batches)


def _ranges(model: Any) -> list[tuple[Any, dict]]:
    """The state of all transforms, to put back."""
    if not isinstance(model, TransformedModel):
        return []
    return [(slot, slot.arrays()) for group in model.groups for slot in group.slots]
