"""Whether what layers take and give explains the gradient: looked at before a step.

A weight that is read past the calls of its layer, such as the table of an embedding
that is multiplied with in `call` to give the logits, has a gradient of which inputs and
outputs of layers know a part only.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import runtime
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.walk import walk
from keras_dlopt.privacy import ghost, gradients

_ROWS = 4  # examples that are looked at
_INSTEAD = (
    "Use private(model, method='vectorized'), which differentiates each example by "
    "itself."
)


def check_explained(model: Any, x: Any, y: Any) -> None:
    """Raises `ModelError` where ghost norms would miss a part of a gradient.

    Of a few examples, each with a factor of its own, the weighted sum by inputs and
    outputs of layers is held against the one by differentiation; factors tell apart
    whose gradient is whose. All weights are moved a little, since one that is zero
    hides the gradients before it.

    Args:
        model: a private one, compiled.
        x: arrays of examples.
        y: of labels.
    """
    import tensorflow as tf

    for path, layer in ghost.unknown(model.model):
        raise ModelError(
            f"The layer {path!r} is a {type(layer).__name__}, and method='ghost' knows "
            f"the norms of Dense, Conv1D, Conv2D and Embedding alone. {_INSTEAD}"
        )
    rng = np.random.default_rng(0)
    count = min(_ROWS, len(keras.tree.flatten(x)[0]))
    x, y = keras.tree.map_structure(lambda v: ops.convert_to_tensor(v[:count]), (x, y))
    factor = ops.convert_to_tensor(rng.uniform(0.5, 1.5, count), "float32")
    variables = model.trainable_variables
    moved = [
        ops.convert_to_tensor(
            runtime.to_numpy(v) + 0.05 * rng.normal(size=v.shape), v.dtype
        )
        for v in variables
    ]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(moved)
        with keras.StatelessScope(list(zip(variables, moved, strict=True))):
            with ghost.watching(model.model) as seen:
                outputs = model(x, training=True)
            gradients.check_losses(model)
            losses = gradients.example_losses(model, y, outputs)
        total, weighted = tf.reduce_sum(losses), tf.reduce_sum(factor * losses)
    right = tape.gradient(weighted, moved, unconnected_gradients="zero")
    back = tape.gradient(
        total, [one.made for one in seen], unconnected_gradients="zero"
    )
    parts = []
    for one, gradient in zip(seen, back, strict=True):
        if one.made.shape[0] != count:
            raise _unexplained(one.layer.trainable_variables[0])
        parts.append(ghost.part(one, gradient))
    _compare(model, right, ghost.by_variable(variables, parts, factor, clean=True))


def _compare(model: Any, right: list[Any], found: list[Any]) -> None:
    """Raises `ModelError` for the weight whose gradients differ most, if some do."""
    half = any(one.compute_dtype != "float32" for _, one, _ in walk(model.model))
    pairs = [
        [runtime.to_numpy(ops.cast(runtime.densify(g), "float32")) for g in pair]
        for pair in zip(right, found, strict=True)
    ]
    lengths = np.array([np.linalg.norm(a) for a, _ in pairs])
    apart = np.array([np.linalg.norm(a - b) for a, b in pairs])
    # One of no length, such as that of a shift before a softmax, is rounding alone.
    apart /= lengths + 1e-2 * np.linalg.norm(lengths) + 1e-30
    worst = int(np.argmax(apart))
    if apart[worst] > (0.05 if half else 1e-3):
        raise _unexplained(model.trainable_variables[worst])


def _unexplained(variable: Any) -> ModelError:
    return ModelError(
        f"The gradient of {variable.path!r} does not follow from what its layer takes "
        "and gives: it is read past the layer's calls, or the layer's rows are not the "
        f"examples of the batch one by one. {_INSTEAD}"
    )
