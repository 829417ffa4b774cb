"""What was set on a layer while it lived, and what of it a copy does not have yet."""

import copy
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.runtime.values import to_numpy

PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, np.ndarray)
_MISSING = object()
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, np.ufunc, type)
_OF_LAYERS = (keras.initializers.Initializer, keras.regularizers.Regularizer)
# How far into objects of objects is looked for layers and differences.
_DEPTH = 4


def carry_attributes(old: Any, new: Any, twins: dict[int, Any]) -> None:
    """Sets on a layer's copy what the layer has and its constructor does not give.

    Data are copied; functions, and objects that hold no layers, are the same in both.

    Args:
        old: the layer.
        new: its copy.
        twins: `id(layer)` -> copy, of all layers of the model.

    Raises:
        ModelError: for an object that holds layers or variables which Keras does not
            track, and for a TensorFlow variable that the constructor does not make.
    """
    for name, value in vars(old).items():
        if name in of_keras():
            continue
        there = vars(new).get(name, _MISSING)
        if _is_plain(value):
            known = there is not _MISSING and not _is_plain(there)
            if not known and not _same(there, value):
                _compat.set_attribute(new, name, copy.deepcopy(_unwrapped(value)))
        elif _assigns(value):
            _carry_variable(old, name, value, there)
        elif isinstance(value, types.MethodType):
            owner = twins.get(id(value.__self__), value.__self__)
            if getattr(there, "__func__", None) is not value.__func__:
                method = types.MethodType(value.__func__, owner)
                _compat.set_attribute(new, name, method)
        elif _is_whole(old, name, value, twins) and not _alike(there, value):
            _compat.set_attribute(new, name, value)


def _assigns(value: Any) -> bool:
    """Whether it is a variable of TensorFlow's own, which Keras does not track."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return isinstance(value, tf.Variable)


def _carry_variable(layer: Any, name: str, value: Any, there: Any) -> None:
    if not _assigns(there) or there.shape != value.shape:
        raise ModelError(
            f"{layer.name!r} has a tf.Variable {name!r} that its constructor does not "
            "make like that. Make it there, or use add_weight(), which Keras saves; or "
            "pass copy=False to work on the model itself."
        )
    there.assign(value)


def _is_whole(layer: Any, name: str, value: Any, twins: dict[int, Any]) -> bool:
    """Whether an attribute is a function or an object of the user's without layers."""
    if isinstance(value, (*_FUNCTIONS, functools.partial, *_OF_LAYERS)):
        return True
    if ops.is_tensor(value) and not isinstance(value, keras.Variable):
        return True
    if _is_keras(value) or isinstance(value, list | tuple | set | Mapping):
        return False
    parts = [one for one in _inside(value) if _is_keras(one)]
    lost = [one for one in parts if _is_state(one) and id(one) not in twins]
    tracked = {id(v) for v in layer.variables}
    if any(id(one) not in tracked for one in lost):
        raise ModelError(
            f"{name!r} of {layer.name!r}, a {type(value).__name__}, holds layers or "
            "variables that Keras does not track or save. Make it a "
            "keras.layers.Layer, or pass copy=False to work on the model itself."
        )
    return not parts


def _is_state(one: Any) -> bool:
    return isinstance(one, keras.layers.Layer | keras.Variable)


def _is_keras(value: Any) -> bool:
    home = type(value).__module__.split(".")[0]
    return home in ("keras", "tensorflow", "keras_dlopt") or _is_state(value)


def _inside(value: Any, depth: int = _DEPTH) -> Iterator[Any]:
    """What an object holds in attributes and collections, and what that holds."""
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    else:
        parts = list(_held(value).values())
    for part in parts:
        yield part
        if depth and not _is_keras(part) and not isinstance(part, PLAIN):
            yield from _inside(part, depth - 1)


def _held(value: Any) -> dict[str, Any]:
    """The attributes of an object; none of one that keeps them elsewhere."""
    try:
        return dict(vars(value))
    except TypeError:
        return {}


def _alike(one: Any, other: Any, depth: int = _DEPTH) -> bool:
    """Whether an attribute of a copy says what the original's does."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if ops.is_tensor(one):
        return _same(to_numpy(one), to_numpy(other))
    if isinstance(one, functools.partial):
        one, other = ([f.func, f.args, f.keywords] for f in (one, other))
        return _same(one, other)
    if isinstance(one, _OF_LAYERS):
        return _same(one.get_config(), other.get_config())
    if isinstance(one, _FUNCTIONS):
        return False
    if _is_plain(one):
        return _same(one, other)
    held, theirs = _held(one), _held(other)
    if not held or not theirs or not depth:
        return bool(one == other)
    names = held.keys() == theirs.keys()
    return names and all(_alike(held[n], theirs[n], depth - 1) for n in held)


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
        floats = same_kind and one.dtype.kind in "fc"
        return same_kind and np.array_equal(one, other, equal_nan=floats)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_same(a, b) for a, b in pairs)
    return type(one) is type(other) and one == other


@functools.cache
def of_keras() -> frozenset[str]:
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
