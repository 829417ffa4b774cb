"""What stands in one layer's `call` and attributes, in place of its class' own."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras


def instance_call(layer: keras.Operation) -> Any:
    """The `call` of this layer's instance; None if it has its class'."""
    return vars(layer).get("call")


def set_instance_call(layer: keras.Operation, call: Any) -> None:
    """Gives this layer's instance a `call` of its own; None takes it away.

    Relies on: layers and operations look up `self.call` at each call, in Sequential,
    Functional and subclassed models and in symbolic calls; what Keras knows of the
    signature is from when the layer was made. Keras' attribute tracking is passed by.
    """
    vars(layer).pop("call", None)
    if call is not None:
        vars(layer)["call"] = call


@contextlib.contextmanager
def called_through(
    layers: Iterable[keras.layers.Layer], call: Callable[..., Any]
) -> Iterator[None]:
    """Inside, calling one of these layers is `call(layer, own, *args, **kwargs)`.

    `own` is what the layer would do: for symbolic tensors, record the call as one node
    of the graph.

    Relies on: all models call the layers in them as `layer(...)`, and an instance may
    become one of a subclass of its class for a while.
    """
    kinds = [(layer, type(layer)) for layer in layers]
    try:
        for layer, kind in kinds:

            def through(self: Any, *args: Any, kind: Any = kind, **kwargs: Any) -> Any:
                own = functools.partial(kind.__call__, self)
                return call(self, own, *args, **kwargs)

            layer.__class__ = type(kind.__name__, (kind,), {"__call__": through})
        yield
    finally:
        for layer, kind in kinds:
            layer.__class__ = kind


def set_class(layer: keras.layers.Layer, cls: type[keras.layers.Layer]) -> None:
    """Makes a layer one of a subclass of its class, with all that it holds.

    Relies on: `call` is looked up on the class at each call, and what Keras' `__init__`
    and `build` made stays valid for a subclass that adds none of it.
    """
    layer.__class__ = cls


def set_attribute(layer: keras.layers.Layer, name: str, value: Any) -> None:
    """Sets on a layer what its twin of the same class has under this name.

    Relies on: what a layer keeps beside Keras' own attributes is its author's, and a
    built layer takes functions and plain data.
    """
    setattr(layer, name, value)


@contextlib.contextmanager
def changed(layer: keras.layers.Layer, **attributes: Any) -> Iterator[None]:
    """Inside, a layer has other values of some attributes, in all threads.

    Relies on: layers read `activation`, `momentum` and `trainable` at each call.
    """
    before = {name: getattr(layer, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(layer, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(layer, name, value)


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """What a model was compiled with, the objects themselves; empty if it was not.

    Relies on: `Model._compile_config`, whose `config` holds the arguments by name.
    """
    if not model.compiled:
        return {}
    return dict(getattr(getattr(model, "_compile_config", None), "config", {}))
