"""BatchNormalization on another data set: its statistics taken from there."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import DataError, ModelError
from keras_dlopt.graph import hooks
from keras_dlopt.graph.normalization import measure_normalization
from keras_dlopt.graph.walk import check_built, layers_below


def adapt_statistics(model: keras.Model, x: Any, *, batch_size: int = 256) -> int:
    """Replaces the moving statistics by those of other data, without labels (AdaBN).

    Weights stay. The mean over batches weighs each the same; dropout and noise are off.

    Args:
        model: a built model with BatchNormalization, changed in place; transformed or
            not.
        x: its inputs: an array, or a structure of arrays, of at least two examples.
        batch_size: examples that statistics are taken of at once; a last batch that is
            smaller is left out, where it is not the only one.

    Returns:
        How many layers were measured.

    Raises:
        ModelError: for a model that is not built or has no BatchNormalization.
        DataError: for fewer than two examples.

    Example:
        >>> net = keras.Sequential([
        ...     keras.Input((2,)), keras.layers.BatchNormalization()])
        >>> adapt_statistics(net, np.array([[1.0, 4.0], [3.0, 4.0]], "float32"))
        1
        >>> net.layers[0].moving_mean.numpy().tolist()
        [2.0, 4.0]

    Source: Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation"
    (arXiv:1603.04779), algorithm 1.
    """
    check_built(model)
    batch_size = checks.count(batch_size, name="batch_size")
    count = len(keras.tree.flatten(x)[0])
    if count < 2:
        raise DataError(
            f"Statistics need at least two examples. Received: {count}. Give more "
            "inputs of the new data."
        )
    starts = range(0, max(count - batch_size + 1, 1), batch_size)
    batches = (_part(x, start, batch_size) for start in starts)
    with _still(model):
        found = measure_normalization(model, batches)
    if not found:
        raise ModelError(
            f"{model.name!r} has no BatchNormalization, so there is nothing to adapt. "
            "Fine-tune it on labels instead."
        )
    return found


def _part(x: Any, start: int, size: int) -> Any:
    return keras.tree.map_structure(
        lambda one: np.asarray(one[start : start + size]), x
    )


@contextlib.contextmanager
def _still(model: Any) -> Iterator[None]:
    """Inside, what draws random numbers in training does not."""
    random = [
        one
        for one in layers_below(model)
        if isinstance(one, keras.layers.Dropout | keras.layers.GaussianNoise)
    ]
    with hooks.hooked([(one, _outside) for one in random]):
        yield


def _outside(call: hooks.Called, given: hooks.Given) -> Any:
    return call(given.changed("training", False))
