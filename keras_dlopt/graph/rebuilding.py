"""A Sequential or Functional model built anew, some layers replaced by others."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ModelError
from keras_dlopt.graph.copying import reason
from keras_dlopt.graph.walk import is_functional, layers_below

Piece = tuple[Any, list[np.ndarray]]
Pieces = Mapping[int, Callable[[], list[Piece]]]


def reaches(parents: Sequence[Any]) -> bool:
    """Whether `rebuilt` can replace a layer: all models around it know their graph.

    Args:
        parents: of the layer, outermost first, itself last; as in `Target`.
    """
    return all(map(is_functional, parents[:-1]))


def rebuilt(model: Any, pieces: Pieces) -> Any:
    """The model anew, layer by layer, nested models included.

    Args:
        model: a built model.
        pieces: id of a layer -> what gives the layers in its place, in order, each with
            its weights; none of them lets its first input pass. All other layers are
            copied.

    Raises:
        ModelError: for a subclassed model in which a layer is replaced, or one whose
            layers cannot be built anew.
    """
    if not is_functional(model):
        raise ModelError(
            f"{type(model).__name__} is a subclassed model, and its layers cannot be "
            "replaced from outside. Build it as Sequential or Functional model, or "
            "keep it as finalize makes it."
        )
    rest: dict[int, list[Any] | None] = {}
    values: list[Piece] = []

    def clone(layer):  # or an operation between layers
        made = _in_place_of(layer, pieces)
        values.extend(pair for pair in made if pair[1])
        first = made[0][0] if made else _copy(layer)
        rest[id(first)] = [piece for piece, _ in made[1:]] if made else None
        return first

    def call(layer, *args, **kwargs):
        after = rest[id(layer)]
        if after is None:
            given = keras.tree.flatten((args, kwargs))
            return next(x for x in given if isinstance(x, keras.KerasTensor))
        outputs = layer(*args, **kwargs)
        for piece in after:
            outputs = piece(outputs)
        return outputs

    if isinstance(model, keras.Sequential):
        (given,) = model.inputs
        new = keras.Sequential(trainable=model.trainable, name=model.name)
        new.add(keras.Input(batch_shape=given.shape, dtype=given.dtype))
        for layer in model.layers:
            first = clone(layer)
            after = rest[id(first)]
            for piece in [] if after is None else [first, *after]:
                new.add(piece)
        if model.compiled:
            new.compile_from_config(model.get_compile_config())
    else:
        new = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer, weights in values:
        layer.set_weights(weights)
    return new


def _in_place_of(layer: Any, pieces: Pieces) -> list[Piece]:
    if id(layer) in pieces:
        return pieces[id(layer)]()
    if not isinstance(layer, keras.layers.Layer):
        return [(_copy(layer), [])]
    if any(id(inside) in pieces for inside in layers_below(layer)):
        return [(rebuilt(layer, pieces), [])]
    return [(_copy(layer), layer.get_weights())]


def _copy(layer: Any) -> Any:
    try:
        return type(layer).from_config(layer.get_config())
    except Exception as error:
        raise ModelError(
            f"The layer {layer.name!r} cannot be built anew from its config "
            f"({reason(error)}). Give it get_config() and from_config()."
        ) from error


def like(layer: Any, **config: Any) -> Any:
    """A layer that is not built, of the same class and with other arguments."""
    return type(layer).from_config(layer.get_config() | config)
