"""Statistics of BatchNormalization, measured anew."""

import contextlib
from collections.abc import Iterable
from typing import Any

import keras

from keras_dlopt._compat import changed
from keras_dlopt.graph.walk import layers_below


def measure_normalization(model: Any, batches: Iterable[Any]) -> int:
    """Replaces moving statistics by their mean over batches, each weighing the same.

    Args:
        model: a built model, changed in place; it runs in training mode.
        batches: of its inputs.

    Returns:
        How many layers were measured; without any, the model does not run.
    """
    layers = layers_below(model, keras.layers.BatchNormalization)
    with contextlib.ExitStack() as stack:
        for layer in layers:
            # A frozen one would not look at the data.
            stack.enter_context(changed(layer, momentum=layer.momentum, trainable=True))
        for number, batch in enumerate(batches if layers else ()):
            for layer in layers:
                layer.momentum = number / (number + 1)
            model(batch, training=True)
    return len(layers)
