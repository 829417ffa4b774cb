"""From a transformed model back to an ordinary Keras model."""

import warnings
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.graph.rebuilding import Piece, like, rebuilt
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.graph.walk import children, is_functional
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.transforms.layer import TransformedLayer
from keras_dlopt.transforms.model import TransformedModel
from keras_dlopt.transforms.trainer import overridden
from keras_dlopt.transforms.updating import hosts


def finalize(model: keras.Model, *, copy: bool = True) -> keras.Model:
    """An ordinary Keras model with the transformed weights baked in.

    All that `surgery.finalize` says of it but `remove`, which is of no concern here.
    """
    if not isinstance(model, keras.Model):
        raise ModelError(f"finalize takes a keras.Model. Received: {model!r}.")
    found = hosts(model)
    if not found:
        raise ModelError(
            f"The model {model.name!r} holds no transforms, so there is nothing to "
            "finalize. Build one with keras_dlopt.transform(model, recipe)."
        )
    for host in found:
        host.check_updated()
        host.check_acted()
    left = [text for host in found for text in host.remaining()]
    if left:
        warnings.warn(
            "Finalizing before the schedule ended: " + "; ".join(left) + ".",
            stacklevel=2,
        )
    plain = _plain(model, copy=copy)
    _compile_as(model, plain)
    return plain


def _compile_as(model: keras.Model, plain: keras.Model) -> None:
    """Compiles a plain model as another one was, if that comes back from a file."""
    given = _compat.compile_arguments(model)
    if given.get("optimizer") is None or overridden(plain, "compile"):
        return
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The object being serialized")
            config = model.get_compile_config()
            made = keras.saving.deserialize_keras_object(config)
    except Exception:
        return  # Keras says itself what to do with a model that is not compiled
    flat = [keras.tree.flatten({k: held[k] for k in given}) for held in (given, made)]
    pairs = zip(*flat, strict=True)
    # A name may have led to another function than the one that was given.
    if all(new is old for old, new in pairs if isinstance(old, FunctionType)):
        plain.compile(**made)


def _plain(model: Any, *, copy: bool = True) -> keras.Model:
    if not isinstance(model, TransformedModel):
        return _unwrapped(model)
    plain = copy_model(model.model) if copy else model.model
    targets = {t.path: t.variable for t in weight_targets(plain)}
    for target, value, _ in model.final_values():
        targets[target.path].assign(value)
    for group in model.groups:
        for slot in group.slots:
            if slot.resting:  # the copy has the flag of a weight that is not trained
                slot.wake(targets[slot.target.path])
    if not copy:
        model.release()
    return _unwrapped(plain) if hosts(plain) else plain


def _unwrapped(model: keras.Model) -> keras.Model:
    if not is_functional(model):
        raise ModelError(
            f"{type(model).__name__} is a subclassed model, and its layers cannot be "
            "replaced from outside. Build it from plain layers and use "
            "keras_dlopt.transform(model, recipe) instead."
        )
    pieces: dict[int, Callable[[], list[Piece]]] = {}
    left = []
    for layer in children(model):
        if isinstance(layer, keras.Model) and hosts(layer):
            pieces[id(layer)] = partial(_plain_piece, layer)
        elif isinstance(layer, TransformedLayer) and not hosts(layer.layer):
            pieces[id(layer)] = partial(_baked_piece, layer)
        elif hosts(layer):
            left.append(layer.name)
    if left:
        raise ModelError(
            f"The layers {left} hold transformed layers that cannot be taken out of "
            "them. Build them from plain layers and use keras_dlopt.transform(model, "
            "recipe), which reaches every weight, instead."
        )
    return rebuilt(model, pieces)


def _plain_piece(model: Any) -> list[Piece]:
    return [(_plain(model), [])]


def _baked_piece(host: Any) -> list[Piece]:
    final = {id(target.variable): value for target, value, _ in host.final_values()}
    weights = [final.get(id(v), to_numpy(v)) for v in host.layer.weights]
    return [(like(host.layer), weights)]
