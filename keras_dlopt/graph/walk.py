"""Walking a model's layers, each with a path that every copy of it gives."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_dlopt import _compat


def walk(
    layer: Any, path: str, parents: tuple[Any, ...], seen: set[int]
) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Yields (path, layer, parents) from `layer` down; shared layers once."""
    if id(layer) in seen:
        return
    seen.add(id(layer))
    parents = (*parents, layer)
    yield path, layer, parents
    for child, name in zip(*_named(layer, parents), strict=True):
        yield from walk(child, f"{path}/{name}".lstrip("/"), parents, seen)


def _named(layer: Any, parents: tuple[Any, ...]) -> tuple[list[Any], list[str]]:
    """The layers in `layer`, and names that every copy of it gives them."""
    children = _compat.sublayers(layer)
    if not is_functional(layer):
        return children, _apart([_attribute(layer, child) for child in children])
    if all(is_functional(parent) for parent in parents):
        return children, [child.name for child in children]  # its config keeps them
    names, taken = [], dict[str, int]()
    for child in children:
        unique = numbered(_plain_name(child), taken)
        names.append(unique if _is_automatic(child) else child.name)
    return children, names


def is_functional(layer: Any) -> bool:
    """Whether it is a Sequential or Functional model."""
    return isinstance(layer, keras.Sequential) or hasattr(layer, "operations")


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
        return child.name
    for name, value in vars(parent).items():
        if name == "_layers" or name.startswith("_self_"):  # lists of all of them
            continue
        if value is child:
            return name
        items: Any = value.items() if isinstance(value, Mapping) else ()
        if isinstance(value, list | tuple):
            items = enumerate(value)
        for key, item in items:
            if item is child:
                return f"{name}_{key}"
    return child.name
