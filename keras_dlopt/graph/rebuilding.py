"""A Sequential or Functional model built anew, some layers replaced by others."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ModelError

Piece = tuple[Any, list[np.ndarray]]


def rebuilt(model: Any, pieces: Mapping[int, Callable[[], list[Piece]]]) -> Any:
    """The model anew, layer by layer, nested models included.

    Args:
        model: a built model.
        pieces: id of a layer -> what gives the layers in its place, in order, each with
            its weights. All other layers are copied.

    Raises:
        ModelError: for a subclassed model.
    """
    if not isinstance(model, keras.Sequential) and not hasattr(model, "operations"):
        raise ModelError(
            f"{type(model).__name__} is a subclassed model, and its layers cannot be "
            "replaced from outside. Keep it as finalize makes it."
        )
    rest: dict[int, list[Any]] = {}
    values: list[Piece] = []

    def clone(layer):  # or an operation between layers
        if id(layer) in pieces:
            made = pieces[id(layer)]()
        elif isinstance(layer, keras.Model):
            made = [(rebuilt(layer, pieces), [])]
        else:
            weights = layer.get_weights() if isinstance(layer, keras.Layer) else []
            made = [(type(layer).from_config(layer.get_config()), weights)]
        values.extend(pair for pair in made if pair[1])
        rest[id(made[0][0])] = [piece for piece, _ in made[1:]]
        return made[0][0]

    def call(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        for piece in rest[id(layer)]:
            outputs = piece(outputs)
        return outputs

    if isinstance(model, keras.Sequential):
        new = keras.Sequential([keras.Input(batch_shape=model.input_shape)])
        new.name = model.name
        for layer in model.layers:
            first = clone(layer)
            for piece in [first, *rest[id(first)]]:
                new.add(piece)
    else:
        new = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer, weights in values:
        layer.set_weights(weights)
    return new
