"""A Sequential or Functional model built anew, some layers replaced by others."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ModelError
from keras_dlopt.graph.copying import reason
from keras_dlopt.graph.walk import (
    children,
    is_functional,
    layers_below,
    operations,
)

Args = tuple[Any, ...]  # of a call
Kwargs = dict[str, Any]
Piece = tuple[Any, list[np.ndarray]]
Pieces = Mapping[int, Callable[[], list[Piece]]]


def reaches(parents: Sequence[Any]) -> bool:
    """Whether `rebuilt` can replace a layer: all models around it know their graph.

    Args:
        parents: of the layer, outermost first, itself last; as in `Target`.
    """
    return all(map(is_functional, parents[:-1]))


@dataclasses.dataclass(frozen=True)
class Reshaped:
    """What changes besides layers, where tensors get another shape.

    Attributes:
        shapes: id of a nested model -> of each of its inputs an axis, how long it is
            now, and how long it was.
        arguments: id of an operation -> function of the (args, kwargs) of its call that
            returns those to call it with.
    """

    shapes: Mapping[int, list[tuple[int, int, int]]]
    arguments: Mapping[int, Callable[[Args, Kwargs], tuple[Args, Kwargs]]]

    def inputs(self, model: Any) -> list[Any]:
        """Symbolic inputs for the model anew."""
        made = []
        changes = self.shapes.get(id(model), [(0, 0, 0)] * len(model.inputs))
        for tensor, (axis, now, before) in zip(model.inputs, changes, strict=True):
            shape = list(tensor.shape)
            if now != before:
                shape[axis] = now
            made.append(
                keras.Input(batch_shape=shape, dtype=tensor.dtype, name=tensor.name)
            )
        return made

    def changes(self, layer: Any) -> bool:
        """Whether a nested model has another input or another argument inside."""
        if any(now != before for _, now, before in self.shapes.get(id(layer), ())):
            return True
        return any(id(one) in self.arguments for _, one in operations(layer))


NOTHING = Reshaped({}, {})


def rebuilt(model: Any, pieces: Pieces, reshaped: Reshaped = NOTHING) -> Any:
    """The model anew, layer by layer, nested models included.

    Args:
        model: a built model.
        pieces: id of a layer -> what gives the layers in its place, in order, each with
            its weights; none of them lets its first input pass. All other layers are
            copied.
        reshaped: what else changes where the pieces make tensors of other shapes.

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
    _check_apart(model)
    rest: dict[int, list[Any] | None] = {}
    values: list[Piece] = []
    arguments: dict[int, Any] = {}
    inputs = reshaped.inputs(model)

    def clone(layer: Any) -> Any:  # or an operation between layers
        made = _in_place_of(layer, pieces, reshaped)
        values.extend(pair for pair in made if pair[1])
        first = made[0][0] if made else _copy(layer)
        rest[id(first)] = [piece for piece, _ in made[1:]] if made else None
        if id(layer) in reshaped.arguments:
            arguments[id(first)] = reshaped.arguments[id(layer)]
        return first

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        after = rest[id(layer)]
        if id(layer) in arguments:
            args, kwargs = arguments[id(layer)](args, kwargs)
        if after is None:
            given = keras.tree.flatten((args, kwargs))
            return next(x for x in given if isinstance(x, keras.KerasTensor))
        outputs = layer(*args, **kwargs)
        for piece in after:
            outputs = piece(outputs)
        return outputs

    if isinstance(model, keras.Sequential):
        new = keras.Sequential(trainable=model.trainable, name=model.name)
        new.add(inputs[0])
        for layer in model.layers:
            first = clone(layer)
            after = rest[id(first)]
            for piece in [] if after is None else [first, *after]:
                new.add(piece)
        if model.compiled:
            new.compile_from_config(model.get_compile_config())
    else:
        given = keras.tree.pack_sequence_as(model.input, inputs)
        new = keras.models.clone_model(
            model, input_tensors=given, clone_function=clone, call_function=call
        )
    for layer, weights in values:
        layer.set_weights(weights)
    return new


def _check_apart(model: Any) -> None:
    """Refuses layers that hold one variable: anew, each would have its own."""
    owners: dict[int, Any] = {}
    for layer in children(model):
        for variable in layer.weights:
            first = owners.setdefault(id(variable), layer)
            if first is not layer:
                raise ModelError(
                    f"The layers {first.name!r} and {layer.name!r} of {model.name!r} "
                    f"hold one variable, {variable.path!r}, and built anew each would "
                    "have its own. Call one layer at both places, or give each its own "
                    "variable and tie them by Share in a recipe."
                )


def _in_place_of(layer: Any, pieces: Pieces, reshaped: Reshaped) -> list[Piece]:
    if id(layer) in pieces:
        return pieces[id(layer)]()
    if not isinstance(layer, keras.layers.Layer):
        return [(_copy(layer), [])]
    inside = [*layers_below(layer), *(one for _, one in operations(layer))]
    if any(id(one) in pieces for one in inside) or reshaped.changes(layer):
        return [(rebuilt(layer, pieces, reshaped), [])]
    return [(_copy(layer), layer.get_weights())]


def _copy(layer: Any) -> Any:
    try:
        return type(layer).from_config(layer.get_config())
    except Exception as error:
        raise ModelError(
            f"The layer {layer.name!r} cannot be built anew from its config "
            f"({reason(error)}). Give it get_config() and from_config()."
        ) from error


def like(layer: Any, /, **config: Any) -> Any:
    """A layer that is not built, of the same class and with other arguments."""
    return type(layer).from_config(layer.get_config() | config)
