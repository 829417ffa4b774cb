"""State of a model that its config does not hold: what was set on it while it lived."""

import contextlib
import functools
import os
import tempfile
import types
from collections.abc import Iterator
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.attributes import carry_attributes, of_keras
from keras_dlopt.graph.walk import own_weights, walk
from keras_dlopt.runtime.values import to_numpy


@contextlib.contextmanager
def named_functions(model: Any) -> Iterator[dict[str, Any]]:
    """Inside, functions that layers hold go into configs by a name of their own.

    A config would keep a lambda as bytecode, which has lost the names around it.

    Yields:
        Name -> function, the `custom_objects` to read such a config with.
    """
    names: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for _, layer, _ in walk(model):
            held = {
                attribute: _named(value, names)
                for attribute, value in vars(layer).items()
                if attribute not in of_keras() and _is_users(value)
            }
            stack.enter_context(_compat.changed(layer, **held))
        yield names


def carry(model: Any, twin: Any) -> None:
    """Gives a copy what was set on the layers and weights after construction.

    Raises:
        ModelError: where a layer was replaced by one that the config does not name, and
            for state that Keras does not track.
    """
    pairs = _layers(model, twin)
    twins = {id(old): new for _, old, new in pairs}
    for path, old, new in pairs:
        if type(old) is not type(new):
            raise ModelError(
                f"The layer {path!r} of {model.name!r} is a "
                f"{type(old).__name__}, and its config makes a "
                f"{type(new).__name__}: it was replaced after construction. Make "
                "it in __init__(), or pass copy=False to work on the model itself."
            )
        carry_attributes(old, new, twins)
        if _has_more_than_variables(old):
            _carry_by_hooks(old, new)
    for _, old, new in pairs:  # outer layers come first: they set those inside
        if new.trainable != old.trainable:
            new.trainable = old.trainable
    for ours, theirs in _paired(twin.variables, model.variables):
        if ours.trainable != theirs.trainable:
            ours.trainable = theirs.trainable
        if theirs.regularizer is None:
            ours.regularizer = None
        if theirs.constraint is None:
            ours.constraint = None


def _paired(ours: list[Any], theirs: list[Any]) -> list[tuple[Any, Any]]:
    """The variables of a copy with those of its model, in order or else by path."""
    if [v.shape for v in ours] == [v.shape for v in theirs]:
        return list(zip(ours, theirs, strict=True))
    by_path = {v.path: v for v in theirs}
    return [(v, by_path[v.path]) for v in ours if v.path in by_path]


def carry_settings(model: Any, twin: Any) -> None:
    """Gives a model of the same layers in other sizes what was set on them.

    Functions of this process, and what is frozen, layers and weights. Layers that are
    missing are passed by.
    """
    new = {path: layer for path, layer, _ in walk(twin)}
    same = [
        (layer, new[path])
        for path, layer, _ in walk(model)
        if path in new and type(layer) is type(new[path])
    ]
    for layer, other in same:  # outer layers come first: they set those inside
        _carry_functions(layer, other)
        if other.trainable != layer.trainable:
            other.trainable = layer.trainable
    for layer, other in same:
        flags = {v.name: v.trainable for v in own_weights(layer)}
        for variable in own_weights(other):
            if flags.get(variable.name, variable.trainable) != variable.trainable:
                variable.trainable = flags[variable.name]


def _carry_functions(old: Any, new: Any) -> None:
    for name, value in vars(old).items():
        held = isinstance(value, types.FunctionType) and name not in of_keras()
        if held and vars(new).get(name) is not value:
            _compat.set_attribute(new, name, value)


def carry_by_layers(model: Any, twin: Any) -> None:
    """Gives each layer of a copy its variables, by the layer's own hooks."""
    for _, old, new in _layers(model, twin):
        _carry_by_hooks(old, new)


def _layers(model: Any, twin: Any) -> list[tuple[str, Any, Any]]:
    """Path, layer and copy: in order, since automatic names count on, or by path."""
    old, new = list(walk(model)), list(walk(twin))
    if [type(layer) for _, layer, _ in old] == [type(layer) for _, layer, _ in new]:
        return [(p, a, b) for (p, a, _), (_, b, _) in zip(old, new, strict=True)]
    by_path = {path: layer for path, layer, _ in new}
    return [(p, layer, by_path[p]) for p, layer, _ in old if p in by_path]


def _has_more_than_variables(layer: Any) -> bool:
    """Whether a layer keeps vocabularies, tables, or what it derives from variables."""
    own = not type(layer).__module__.startswith("keras.")
    cls, base = type(layer), keras.layers.Layer
    reads = cls.load_own_variables is not base.load_own_variables and own
    models = isinstance(layer, keras.Model)
    return not models and (reads or any(hasattr(cls, n) for n in _KEPT_ASIDE))


_KEPT_ASIDE = ("save_assets", "finalize_state")


def _carry_by_hooks(old: Any, new: Any) -> None:
    store: dict[str, Any] = {}
    old.save_own_variables(store)
    new.load_own_variables({name: to_numpy(value) for name, value in store.items()})
    if hasattr(old, "save_assets") and hasattr(new, "load_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            if os.listdir(folder):
                new.load_assets(folder)


def _is_users(value: Any) -> bool:
    """Whether it is a function that Keras knows no name for."""
    return (
        isinstance(value, types.FunctionType)
        and (value.__module__ or "").split(".")[0] != "keras"
        and keras.saving.get_registered_name(value) == value.__name__
    )


def _named(function: Any, names: dict[str, Any]) -> Any:
    """A function of another name that does the same."""

    @functools.wraps(function)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    stand_in.__name__ = stand_in.__qualname__ = f"function_{len(names)}_of_the_model"
    names[stand_in.__name__] = stand_in
    return stand_in
