"""One scale for a dense kernel, or one an output channel: by bytes and outputs."""

from typing import Any

import keras
import numpy as np
from keras import layers

from keras_dlopt.graph.folding import folded
from keras_dlopt.graph.walk import as_functional
from keras_dlopt.int8.recipes import kernel_targets
from keras_dlopt.post_training.data import Batches
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.select import at
from keras_dlopt.transforms import FakeQuant, Recipe, TransformedModel

# How much farther from the float model the outputs may be for the smaller file.
_FARTHER = 1.1


def one_scale_pays(model: keras.Model) -> bool:
    """Whether a model has a dense kernel, whose channels' scales are bytes."""
    return any(isinstance(t.layer, layers.Dense) for t in kernel_targets(model))


def with_normalization_in_dense(model: Any) -> Any:
    """The model, BatchNormalization beside dense layers folded into their kernels.

    What is folded later multiplies each channel, and one scale would become many.

    Args:
        model: any; a subclassed one is returned as it is.
    """
    if as_functional(model) is None:
        return model
    return folded(model, layers.BatchNormalization, layers.Dense)


def with_one_scale(model: keras.Model, recipe: Recipe) -> Recipe:
    """The recipe with one scale for each dense kernel.

    Args:
        model: the recipe is for.
        recipe: of int8; it stays as it is.
    """
    targets = kernel_targets(model)
    dense = [t.path for t in targets if isinstance(t.layer, layers.Dense)]
    first = (at(*dense), FakeQuant(bits=8, per_channel=False))
    rest = [t.path for t in targets if t.path not in dense]
    entries = [e for e in recipe.entries if e[1].kind == "activation"]
    entries += [(at(*rest), FakeQuant(bits=8))] if rest else []
    return Recipe([*entries, first])


def nearest(
    model: Any, data: Batches, plain: TransformedModel, fewer: TransformedModel
) -> TransformedModel:
    """The smaller one, if its outputs are about as near to the float model's.

    Args:
        model: in float.
        data: what both were calibrated on.
        plain: has a scale per output channel.
        fewer: has one scale for each dense kernel.
    """
    off = _distances(model, data, (plain, fewer))
    return fewer if off[1] <= _FARTHER * off[0] + 1e-12 else plain


def _distances(model: Any, data: Batches, others: Any) -> np.ndarray:
    """The mean squared difference of each one's outputs from the model's."""
    sums, count = np.zeros(len(others)), 0
    for batch in data:
        expected = _flat(model(batch, training=False))
        for n, other in enumerate(others):
            pairs = zip(_flat(other(batch, training=False)), expected, strict=True)
            sums[n] += sum(float(((a - b) ** 2).sum(dtype=float)) for a, b in pairs)
        count += sum(one.size for one in expected)
    return np.sqrt(sums / max(count, 1))


def _flat(outputs: Any) -> list[np.ndarray]:
    return [to_numpy(one) for one in keras.tree.flatten(outputs)]
