"""Selectors: which weights and activations a recipe entry means.

A selector is a predicate on a `Target`. It never names a table of layer types: it looks
at the path, the rank and the layers around, and combines with `&`, `|` and `~`.

Example:
    >>> import keras
    >>> model = keras.Sequential(
    ...     [keras.Input((8,)), keras.layers.Dense(4, name="a")])
    >>> [t.path for t in weight_targets(model) if named("kernel")(t)]
    ['a/kernel']
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import ConfigError


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """One place a transform can act on.

    Attributes:
        path: names from below the model down, such as `"block/conv/kernel"`; for
            activations the last part is `"input"` or `"output"`.
        kind: `"weight"` or `"activation"`.
        variable: the Keras variable, None for activations.
        layer: the layer that owns the variable or activation; None when only the
            variable is known, as in an optimizer.
        parents: the layers around it, outermost (the model) first, `layer` last.
    """

    path: str
    kind: str = "weight"
    variable: Any = None
    layer: Any = None
    parents: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The variable's shape; None for activations."""
        return None if self.variable is None else tuple(self.variable.shape)


class Selector:
    """A predicate on a `Target`, with `&`, `|`, `~` and a plain-data form."""

    def __call__(self, target: Target) -> bool:
        """Whether the target is meant."""
        raise TypeError(f"{type(self).__name__} does not say which targets it selects.")

    def to_dict(self) -> dict[str, Any]:
        """The selector as JSON-ready data."""
        (key,) = [k for k, cls in _KINDS.items() if cls is type(self)]
        (field,) = dataclasses.fields(self)  # type: ignore[arg-type]
        value = getattr(self, field.name)
        return {key: _plain(value)}

    def __and__(self, other: "Selector") -> "Selector":
        return AllOf((self, _checked(other)))

    def __or__(self, other: "Selector") -> "Selector":
        return AnyOf((self, _checked(other)))

    def __invert__(self) -> "Selector":
        return Not(self)


def _plain(value):
    if isinstance(value, Selector):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


def _checked(other) -> Selector:
    if not isinstance(other, Selector):
        raise ConfigError(
            f"A selector combines with selectors only. Received: {other!r}. "
            "Write for example named('kernel') & rank(4)."
        )
    return other


@dataclasses.dataclass(frozen=True)
class AllOf(Selector):
    """Selects what all parts select."""

    parts: tuple[Selector, ...]

    def __call__(self, target):
        return all(part(target) for part in self.parts)


@dataclasses.dataclass(frozen=True)
class AnyOf(Selector):
    """Selects what any part selects."""

    parts: tuple[Selector, ...]

    def __call__(self, target):
        return any(part(target) for part in self.parts)


@dataclasses.dataclass(frozen=True)
class Not(Selector):
    """Selects what the part does not."""

    part: Selector

    def __call__(self, target):
        return not self.part(target)


@dataclasses.dataclass(frozen=True)
class Named(Selector):
    """Selects by the last part of the path."""

    names: tuple[str, ...]

    def __call__(self, target):
        return target.name in self.names


@dataclasses.dataclass(frozen=True)
class Rank(Selector):
    """Selects weights by their number of dimensions."""

    ranks: tuple[int, ...]

    def __call__(self, target):
        return target.shape is not None and len(target.shape) in self.ranks


@dataclasses.dataclass(frozen=True)
class Inside(Selector):
    """Selects what lies in a layer of one of these classes, at any depth."""

    classes: tuple[str, ...]

    def __call__(self, target):
        if target.layer is None:
            raise ConfigError(
                f"inside{self.classes} needs to know the layer of {target.path!r}, "
                "and here only the variable is known. Select by path instead, with "
                "named() or matching()."
            )
        return any(
            keras.saving.get_registered_name(base) in self.classes
            for parent in target.parents
            for base in type(parent).__mro__
        )


@dataclasses.dataclass(frozen=True)
class Matching(Selector):
    """Selects by a regular expression that must match the whole path."""

    pattern: str

    def __call__(self, target):
        return re.fullmatch(self.pattern, target.path) is not None


@dataclasses.dataclass(frozen=True)
class At(Selector):
    """Selects exactly these paths."""

    paths: tuple[str, ...]

    def __call__(self, target):
        return target.path in self.paths


def named(*names: str) -> Selector:
    """Selects weights and activations whose path ends in one of `names`.

    Example:
        >>> named("kernel")(Target("conv/kernel"))
        True
    """
    return Named(names)


def rank(*ranks: int) -> Selector:
    """Selects weights with this many dimensions: 2 is dense, 4 a 2-D convolution."""
    return Rank(ranks)


def inside(*classes: type | str) -> Selector:
    """Selects what lies inside layers of these classes, subclasses included.

    Args:
        *classes: layer classes, or their registered names (`"Conv2D"`,
            `"my_package>MyBlock"`), so that recipes stay plain data.

    Example:
        >>> inside(keras.layers.Conv2D).to_dict()
        {'inside': ['Conv2D']}
    """
    names = (
        c if isinstance(c, str) else keras.saving.get_registered_name(c)
        for c in classes
    )
    return Inside(tuple(names))


def matching(pattern: str) -> Selector:
    """Selects the paths that the regular expression matches in full.

    Raises:
        ConfigError: for an expression that does not compile.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"matching() takes a regular expression. Received: {pattern!r}, which does "
            f"not compile: {error}."
        ) from None
    return Matching(pattern)


def at(*paths: str) -> Selector:
    """Selects exactly these paths, such as `"conv1/kernel"`."""
    return At(paths)


def everything() -> Selector:
    """Selects every target of the kind that the transform acts on."""
    return Matching(".*")


_KINDS: dict[str, type[Selector]] = {
    "all": AllOf,
    "any": AnyOf,
    "not": Not,
    "named": Named,
    "rank": Rank,
    "inside": Inside,
    "matching": Matching,
    "at": At,
}


def selector_from_dict(data: Any) -> Selector:
    """The selector that `Selector.to_dict` wrote.

    Raises:
        ConfigError: for data that is not a selector.
    """
    if not isinstance(data, dict) or len(data) != 1 or next(iter(data)) not in _KINDS:
        raise ConfigError(
            f"A selector is a dict with one key of {sorted(_KINDS)}. Received: {data!r}"
        )
    ((key, value),) = data.items()
    if key in ("all", "any"):
        return _KINDS[key](tuple(selector_from_dict(v) for v in value))  # type: ignore
    if key == "not":
        return Not(selector_from_dict(value))
    if key == "matching":
        return matching(value)
    return _KINDS[key](tuple(value))  # type: ignore[call-arg]


def _walk(
    layer: Any, path: str, parents: tuple[Any, ...], seen: set[int]
) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Yields (path, layer, parents) from `layer` down; shared layers once."""
    if id(layer) in seen:
        return
    seen.add(id(layer))
    parents = (*parents, layer)
    yield path, layer, parents
    for child, name in zip(*_named(layer, parents), strict=True):
        yield from _walk(child, f"{path}/{name}".lstrip("/"), parents, seen)


def _named(layer: Any, parents: tuple[Any, ...]) -> tuple[list[Any], list[str]]:
    """The layers in `layer`, and names that every copy of it gives them."""
    children = _compat.sublayers(layer)
    if not _is_graph(layer):
        return children, _apart([_attribute(layer, child) for child in children])
    if all(_is_graph(parent) for parent in parents):
        return children, [child.name for child in children]  # its config keeps them
    names, taken = [], dict[str, int]()
    for child in children:
        numbered = _numbered(_plain_name(child), taken)
        names.append(numbered if _is_automatic(child) else child.name)
    return children, names


def _is_graph(layer: Any) -> bool:
    """Whether it is a Sequential or Functional model."""
    return isinstance(layer, keras.Sequential) or hasattr(layer, "operations")


def _plain_name(layer: Any) -> str:
    return re.sub(r"_\d+$", "", layer.name)


def _is_automatic(layer: Any) -> bool:
    """Whether Keras' counter gave the name."""
    plain = _plain_name(layer).replace("_", "")
    return plain == type(layer).__name__.replace("_", "").lower()


def _numbered(name: str, taken: dict[str, int]) -> str:
    """The name, with _1, _2, ... the second time and later; counts in `taken`."""
    count = taken[name] = taken.get(name, -1) + 1
    return f"{name}_{count}" if count else name


def _apart(names: list[str]) -> list[str]:
    """The names, with _1, _2, ... where one was given twice."""
    found: list[str] = []
    taken: dict[str, int] = {}
    for name in names:
        unique = _numbered(name, taken)
        while unique in found:  # as a name of its own
            unique = _numbered(name, taken)
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


def weight_targets(model: keras.layers.Layer) -> list[Target]:
    """Every floating-point weight below `model`, each once.

    Paths are built from layer names. In layers and models written as classes, whose
    config does not keep the names that Keras' counter gave, a layer goes by the
    attribute that holds it. So paths are the same after copying, saving and loading;
    where two layers, or two weights of one layer, would share one, the later ones get
    `_1`, `_2`, ...
    """
    targets: list[Target] = []
    seen: set[int] = set()
    taken: dict[str, int] = {}
    for path, layer, parents in _walk(model, "", (), set()):
        below = {id(v) for sub in _compat.sublayers(layer) for v in sub.weights}
        for variable in layer.weights:
            floating = keras.backend.is_float_dtype(variable.dtype)
            if id(variable) in below | seen or not floating:
                continue
            seen.add(id(variable))
            full = f"{path}/{variable.name}".lstrip("/")
            targets.append(
                Target(
                    path=_numbered(full, taken),
                    variable=variable,
                    layer=layer,
                    parents=parents,
                )
            )
    return targets


def activation_targets(model: keras.layers.Layer) -> list[Target]:
    """The input and the output of every layer below `model`."""
    return [
        Target(f"{path}/{end}", kind="activation", layer=layer, parents=parents)
        for path, layer, parents in _walk(model, "", (), set())
        if path
        for end in ("input", "output")
    ]


def variable_target(variable: Any) -> Target:
    """The target of a variable whose layer is not known, as in an optimizer."""
    return Target(variable.path, variable=variable)
