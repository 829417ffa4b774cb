"""A model traced anew, some of its layers seen through."""

import functools
import inspect
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.copying import reason
from keras_dlopt.graph.symbolic import nodes
from keras_dlopt.graph.walk import children


def seen_through(model: Any, through: list[Any], specs: Any) -> keras.Model:
    """A Functional model of what is inside a model and inside these of its layers.

    A layer stays as it is if it does something else in training or its `call` does not
    work on symbolic tensors.

    Args:
        model: a built model of one's own: its layers get other names, unique ones.
        through: layers or models in it to look into.
        specs: shapes and types of its inputs, as `input_specs` gives them.

    Raises:
        ModelError: if the `call` of the model itself does not work on symbolic tensors.
    """
    _rename(model, {id(layer) for layer in through})
    given = keras.tree.map_structure(
        lambda spec: keras.Input(spec.shape[1:], dtype=spec.dtype), specs
    )
    with _compat.called_through(through, _Through()):
        try:
            return keras.Model(given, model.call(given), name=model.name)
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} cannot be opened: its call() fails on "
                f"symbolic tensors ({reason(error)}). Write call() with layers and "
                "keras.ops only and without a branch on values."
            ) from error


def _rename(model: Any, through: set[int]) -> None:
    """Gives layers that come to stand side by side names of their own."""
    names: set[str] = set()

    def visit(layer: Any, prefix: str, seen: set[int]) -> None:
        for child in children(layer):
            if id(child) in seen:
                continue
            seen.add(id(child))
            name = plain = f"{prefix}{child.name}"
            number = 1
            while name in names:
                name, number = f"{plain}_{number}", number + 1
            names.add(name)
            child.name = name
            if id(child) in through:
                visit(child, f"{name}_", seen)

    visit(model, "", {id(model)})


class _Through:
    """A symbolic call that records what is inside, where that is all there is."""

    def __init__(self) -> None:
        self._tries = False

    def __call__(self, layer: Any, own: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if not self._tries and not self._same_in_training(layer, args, kwargs):
                return own(*args, **kwargs)
            if "training" not in inspect.signature(layer.call).parameters:
                kwargs.pop("training", None)  # Keras' own __call__ takes it from any
            return layer.call(*args, **kwargs)
        except Exception:  # whatever it does there, it does not work on symbols
            if self._tries:
                raise
            return own(*args, **kwargs)

    def _same_in_training(self, layer: Any, args: Any, kwargs: Any) -> bool:
        if "training" not in inspect.signature(layer.call).parameters:
            return True
        self._tries = True
        try:
            kinds = functools.partial(_kinds, layer, args, kwargs)
            return kinds(training=True) == kinds(training=False)
        finally:
            self._tries = False


def _kinds(layer: Any, args: Any, kwargs: Any, *, training: bool) -> list[Any]:
    """What a call consists of: the layers themselves, and classes of operations."""
    fresh: dict[int, Any] = {}

    def symbol(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor):
            return value
        new = keras.Input(batch_shape=value.shape, dtype=value.dtype)
        return fresh.setdefault(id(value), new)

    args, kwargs = keras.tree.map_structure(symbol, (args, kwargs))
    made = layer.call(*args, **{**kwargs, "training": training})
    graph = keras.Model([*fresh.values()], made)
    found = (node.operation for node in nodes(graph))
    return [
        id(one) if isinstance(one, keras.layers.Layer) else type(one)
        for one in found
        if not isinstance(one, keras.layers.InputLayer)
    ]
