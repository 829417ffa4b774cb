"""Walking a model's layers, each with a path that every copy of it gives."""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError

Found = tuple[str, Any, tuple[Any, ...]]


def walk(model: Any) -> Iterator[Found]:
    """Yields (path, layer, parents) from the model itself down; shared layers once.

    Paths are built from layer names. In layers and models written as classes, whose
    config does not keep the names that Keras' counter gave, a layer goes by the
    attribute that holds it. So paths are the same after copying, saving and loading.
    """
    return _walk(model, "", (), set())


def _walk(
    layer: Any, path: str, parents: tuple[Any, ...], seen: set[int]
) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    if id(layer) in seen:
        return
    seen.add(id(layer))
    parents = (*parents, layer)
    yield path, layer, parents
    for child, name in zip(*_named(layer, parents), strict=True):
        yield from _walk(child, f"{path}/{name}".lstrip("/"), parents, seen)


def children(layer: Any) -> list[Any]:
    """The layers that a layer or model holds directly, in the order of creation."""
    return _compat.sublayers(layer)


def own_layers(model: keras.Model) -> list[Any]:
    """The layers that a Sequential or Functional model lists, in its order."""
    return list(model.layers)


def layers_below(layer: Any, kind: Any = keras.layers.Layer) -> list[Any]:
    """Every layer at any depth below another, once, outer ones first.

    Args:
        layer: a layer or model; not among them itself.
        kind: a class, or several, that they must be of.
    """
    found: dict[int, Any] = {id(layer): layer}

    def collect(parent: Any) -> None:
        for child in children(parent):
            if id(child) not in found:
                found[id(child)] = child
                collect(child)

    collect(layer)
    return [one for one in found.values() if one is not layer and isinstance(one, kind)]


def own_weights(layer: Any) -> list[Any]:
    """The weights of a layer that no layer inside it has."""
    below = {id(v) for sub in children(layer) for v in sub.weights}
    return [v for v in layer.weights if id(v) not in below]


def custom_classes(model: Any) -> dict[str, type]:
    """The classes at or below a model that are not Keras' own, by registered name."""
    classes = [type(layer) for layer in (model, *layers_below(model))]
    return {
        keras.saving.get_registered_name(cls): cls
        for cls in classes
        if cls.__module__.split(".")[0] != "keras"
    }


def check_built(model: Any) -> None:
    """Raises `ModelError` unless it is a Keras model with its variables."""
    if not isinstance(model, keras.Model) or not model.built:
        raise ModelError(
            f"The model must be a built keras.Model. Received: {model!r}. Start it "
            "with keras.Input, call model.build(input_shape), or call it once on data."
        )


def is_functional(layer: Any) -> bool:
    """Whether it is a Sequential or Functional model, which knows its graph."""
    return isinstance(layer, (keras.Sequential, _functional_class()))


@functools.cache
def _functional_class() -> type:
    # It has no public name. Named, so that no counter of Keras' moves.
    empty = keras.Input((), name="nothing")
    return type(keras.Model(empty, empty, name="nothing"))


def as_functional(model: Any) -> keras.Model | None:
    """A Functional model as it is, a built Sequential one as Functional; else None."""
    if not isinstance(model, keras.Sequential):
        return model if is_functional(model) else None
    if not model.built:
        return None
    return keras.Model(model.inputs[0], model.outputs[0], name=model.name)


def operations(model: Any) -> list[tuple[str, Any]]:
    """What Functional models compute between their layers, as (path, operation)."""
    found: dict[int, tuple[str, Any]] = {}
    for path, layer, _ in walk(model):
        between = getattr(layer, "operations", ()) if is_functional(layer) else ()
        for one in between:
            if not isinstance(one, keras.layers.Layer):
                found.setdefault(id(one), (f"{path}/{one.name}".lstrip("/"), one))
    return list(found.values())


def _named(layer: Any, parents: tuple[Any, ...]) -> tuple[list[Any], list[str]]:
    """The layers in `layer`, and names that every copy of it gives them."""
    inside = children(layer)
    if not is_functional(layer):
        return inside, _apart([_attribute(layer, child) for child in inside])
    if all(is_functional(parent) for parent in parents):
        return inside, [child.name for child in inside]  # its config keeps them
    names, taken = [], dict[str, int]()
    for child in inside:
        unique = numbered(_plain_name(child), taken)
        names.append(unique if _is_automatic(child) else child.name)
    return inside, names


def _plain_name(layer: Any) -> str:
    return re.sub(r"_\d+$", "", layer.name)


def _is_automatic(layer: Any) -> bool:
    """Whether Keras' counter gave the name."""
    plain = _plain_name(layer).replace("_", "")
    return plain == type(layer).__name__.replace("_", "").lower()


def numbered(name: str, taken: dict[str, int]) -> str:
    """The name, with _1, _2, ... the second time and later; counts in `taken`."""
    count = taken[name] = taken.get(name, -1) + 1
    return f"{name}_{count}" if count else name


def _apart(names: list[str]) -> list[str]:
    """The names, with _1, _2, ... where one was given twice."""
    found: list[str] = []
    taken: dict[str, int] = {}
    for name in names:
        unique = numbered(name, taken)
        while unique in found:  # as a name of its own
            unique = numbered(name, taken)
        found.append(unique)
    return found


def _attribute(parent: Any, child: Any) -> str:
    """The child's name, or the parent's attribute for it if a counter gave the name."""
    if not _is_automatic(child):
        return str(child.name)
    for name, value in vars(parent).items():
        if name == "_layers" or name.startswith("_self_"):  # lists of all of them
            continue
        if value is child:
            return str(name)
        items: Any = value.items() if isinstance(value, Mapping) else ()
        if isinstance(value, list | tuple):
            items = enumerate(value)
        for key, item in items:
            if item is child:
                return f"{name}_{key}"
    return str(child.name)
