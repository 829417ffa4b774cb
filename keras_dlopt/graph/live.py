"""State of a model that its config does not hold: what was set on it while it lived."""

import contextlib
import copy
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.walk import own_weights, walk

PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, np.ndarray)


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
                if attribute not in _of_keras() and _is_users(value)
            }
            stack.enter_context(_compat.changed(layer, **held))
        yield names


def carry(model: Any, twin: Any) -> None:
    """Gives a copy what was set on the layers and weights after construction.

    Raises:
        ModelError: where a layer was replaced by one that the config does not name.
    """
    old = {path: layer for path, layer, _ in walk(model)}
    new = {path: layer for path, layer, _ in walk(twin)}
    shared = [path for path in old if path in new]
    for path in shared:
        if type(old[path]) is not type(new[path]):
            raise ModelError(
                f"The layer {path!r} of {model.name!r} is a "
                f"{type(old[path]).__name__}, and its config makes a "
                f"{type(new[path]).__name__}: it was replaced after construction. Make "
                "it in __init__(), or pass copy=False to work on the model itself."
            )
        _carry_attributes(old[path], new[path])
    for path in shared:  # outer layers come first: they set those inside
        if new[path].trainable != old[path].trainable:
            new[path].trainable = old[path].trainable
    for ours, theirs in zip(twin.variables, model.variables, strict=True):
        if ours.trainable != theirs.trainable:
            ours.trainable = theirs.trainable


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
        held = isinstance(value, types.FunctionType) and name not in _of_keras()
        if held and vars(new).get(name) is not value:
            _compat.set_attribute(new, name, value)


def _carry_attributes(old: Any, new: Any) -> None:
    _carry_functions(old, new)
    for name, value in vars(old).items():
        if name not in _of_keras() and _is_plain(value):
            there = vars(new).get(name, _MISSING)
            if there is _MISSING or (_is_plain(there) and not _same(there, value)):
                _compat.set_attribute(new, name, copy.deepcopy(_unwrapped(value)))


_MISSING = object()


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
    def stand_in(*args, **kwargs):
        return function(*args, **kwargs)

    stand_in.__name__ = stand_in.__qualname__ = f"function_{len(names)}_of_the_model"
    names[stand_in.__name__] = stand_in
    return stand_in


def _is_plain(value: Any) -> bool:
    """Whether it is data: numbers, texts, arrays and collections of them."""
    if isinstance(value, Mapping):
        return all(_is_plain(one) for pair in value.items() for one in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_plain(one) for one in value)
    return isinstance(value, PLAIN)


def _unwrapped(value: Any) -> Any:
    """Plain collections in place of those that track what is put into them."""
    if isinstance(value, Mapping):
        return {key: _unwrapped(one) for key, one in value.items()}
    for kind in (list, set, frozenset):
        if isinstance(value, kind):
            return kind(_unwrapped(one) for one in value)
    if type(value) is tuple:
        return tuple(_unwrapped(one) for one in value)
    return value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        same_kind = type(one) is type(other) and one.dtype == other.dtype
        return same_kind and np.array_equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_same(a, b) for a, b in pairs)
    return type(one) is type(other) and one == other


@functools.cache
def _of_keras() -> frozenset[str]:
    """The attributes that Keras gives layers and models of every kind."""
    empty = keras.Input((), name="nothing")
    model: Any = keras.Model(empty, empty, name="nothing")
    sequential = keras.Sequential([empty], name="nothing")
    bare: list[Any] = [keras.layers.Layer(name="nothing"), model, sequential]
    trainer: Any = keras.Model(name="nothing")
    trainer.compile(loss="mse", metrics=["mse"])
    held = {name for one in (*bare, trainer) for name in vars(one)}
    # What `fit` and a call leave behind.
    left = {"call", "optimizer", "history", "stop_training", "validation_data"}
    return frozenset(held | left | {"_compute_dtype", "_eval_epoch_iterator", "name"})
