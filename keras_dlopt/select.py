"""Selectors: which weights and activations a recipe entry means.

A selector is a predicate on a `Target`. It never names a table of layer types: it looks
at the path, the rank and the layers around, and combines with `&`, `|` and `~`.

Example:
    >>> import keras
    >>> from keras_dlopt.graph.targets import weight_targets
    >>> model = keras.Sequential(
    ...     [keras.Input((8,)), keras.layers.Dense(4, name="a")])
    >>> [t.path for t in weight_targets(model) if named("kernel")(t)]
    ['a/kernel']
"""

import re
from typing import Any

import keras

from keras_dlopt import moved
from keras_dlopt._compat.patterns import automaton
from keras_dlopt.config import Value, arguments, frozen
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import Target


class Selector(Value):
    """A predicate on a `Target`, with `&`, `|`, `~` and a plain-data form."""

    def __call__(self, target: Target) -> bool:
        """Whether the target is meant."""
        raise TypeError(f"{type(self).__name__} does not say which targets it selects.")

    def to_dict(self) -> dict[str, Any]:
        """The selector as JSON-ready data."""
        (key,) = [k for k, cls in _KINDS.items() if cls is type(self)]
        (name,) = arguments(type(self))
        return {key: _plain(getattr(self, name))}

    def __str__(self) -> str:
        """As it is written: `str(named("kernel") & rank(4))` can be evaluated."""
        kinds = {cls: key for key, cls in _KINDS.items()}
        key = kinds.get(type(self))
        if key is None:
            return repr(self)
        (name,) = arguments(type(self))
        value = getattr(self, name)
        values = value if isinstance(value, tuple) else (value,)
        if key in ("all", "any", "not"):
            # One part with a sign in it stands in brackets.
            parts = [
                f"({v})" if isinstance(v, AllOf | AnyOf) else str(v) for v in values
            ]
            return "~" + parts[0] if key == "not" else _SIGNS[key].join(parts)
        return f"{key}({', '.join(map(repr, values))})"

    def __and__(self, other: "Selector") -> "Selector":
        return AllOf((self, _checked(other)))

    def __or__(self, other: "Selector") -> "Selector":
        return AnyOf((self, _checked(other)))

    def __invert__(self) -> "Selector":
        return Not(self)


def _plain(value: Any) -> Any:
    if isinstance(value, Selector):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


def _checked(other: Any) -> Selector:
    if not isinstance(other, Selector):
        raise ConfigError(
            f"A selector combines with selectors only. Received: {other!r}. "
            "Write for example named('kernel') & rank(4)."
        )
    return other


@frozen
class AllOf(Selector):
    """Selects what all parts select."""

    parts: tuple[Selector, ...]

    def __call__(self, target: Target) -> bool:
        return all(part(target) for part in self.parts)


@frozen
class AnyOf(Selector):
    """Selects what any part selects."""

    parts: tuple[Selector, ...]

    def __call__(self, target: Target) -> bool:
        return any(part(target) for part in self.parts)


@frozen
class Not(Selector):
    """Selects what the part does not."""

    part: Selector

    def __call__(self, target: Target) -> bool:
        return not self.part(target)


@frozen
class Named(Selector):
    """Selects by the last part of the path."""

    names: tuple[str, ...]

    def __call__(self, target: Target) -> bool:
        return target.name in self.names


@frozen
class Rank(Selector):
    """Selects weights by their number of dimensions."""

    ranks: tuple[int, ...]

    def __call__(self, target: Target) -> bool:
        return target.shape is not None and len(target.shape) in self.ranks


@frozen
class Inside(Selector):
    """Selects what lies in a layer of one of these classes, at any depth."""

    classes: tuple[str, ...]

    def __call__(self, target: Target) -> bool:
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


@frozen
class Matching(Selector):
    """Selects by a regular expression that must match the whole path."""

    pattern: str

    def __call__(self, target: Target) -> bool:
        return automaton(self.pattern).matches(target.path)


@frozen
class At(Selector):
    """Selects exactly these paths."""

    paths: tuple[str, ...]

    def __call__(self, target: Target) -> bool:
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

    The time is bounded whatever the expression, so that recipes of strangers are safe
    to read: it is Python's syntax without what only backtracking can match.

    Raises:
        ConfigError: for an expression that does not compile; for back-references,
            atomic groups and possessive repeats, and for one that is too large.
    """
    try:
        automaton(pattern)
    except ValueError as error:
        raise ConfigError(
            f"matching() takes what can be matched in bounded time. {pattern[:200]!r} "
            f"cannot: {error}. Write it with plain groups and repeats, or join several "
            "selectors by & and |."
        ) from None
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"matching() takes a regular expression. Received: {pattern!r}, which does "
            f"not compile: {error}."
        ) from None
    return Matching(pattern)


def at(*paths: str) -> Selector:
    """Selects exactly these paths, such as `"conv1/kernel"` or `"relu/output"`.

    An activation of a layer that is called more than once is `"shared/input"` for all
    its calls, which then have one range, or `"shared@0/input"`, `"shared@1/input"`, ...
    for one of them.
    """
    return At(paths)


def exact_paths(selector: Selector) -> set[str]:
    """The paths that `at` names, anywhere in a selector."""
    if isinstance(selector, At):
        return set(selector.paths)
    parts = getattr(selector, "parts", None) or (getattr(selector, "part", None),)
    return {path for part in parts if part for path in exact_paths(part)}


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


_SIGNS = {"all": " & ", "any": " | "}
_WORDS = {int: "whole numbers", str: "texts"}


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
    if key == "not":
        return Not(selector_from_dict(value))
    if key == "matching":
        return matching(value)
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{key!r} of a selector takes a list. Received: {value!r}.")
    if key in ("all", "any"):
        return _KINDS[key](tuple(selector_from_dict(v) for v in value))
    kind = int if key == "rank" else str
    if not all(type(v) is kind for v in value):
        raise ConfigError(
            f"{key!r} of a selector takes a list of {_WORDS[kind]}. "
            f"Received: {value!r}."
        )
    return _KINDS[key](tuple(value))


__getattr__ = moved.names(__name__)
