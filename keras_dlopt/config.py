"""Configs as plain data, from the constructor's signature.

A `Configured` object keeps each argument of its constructor as an attribute of the same
name; that gives `get_config` and `from_config`. A `Value` is one that also is what its
arguments say: `repr`, `==` and `hash` follow. `encode` and `decode` turn objects into
JSON-ready data and back: `{"class": ..., "config": ...}`.

No module named in the data is ever imported: a class comes back if it is registered
with `keras.saving.register_keras_serializable`, or is Keras' own.
"""

import dataclasses
import importlib
import inspect
import typing
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, ClassVar, Self

import keras
import numpy as np

from keras_dlopt.checks import nearest
from keras_dlopt.errors import ConfigError
from keras_dlopt.words import Worded

_OWN = "keras_dlopt>"
# These load when a config names what nobody has registered: scores of channels, and
# TFMOT's starts and schedules, which stand in recipes that were saved.
_LATE = ("keras_dlopt.surgery", "keras_dlopt.interop.tfmot")
# What Keras writes in a form of its own, with the name of a module.
_KERAS = (
    keras.optimizers.schedules.LearningRateSchedule,
    keras.optimizers.Optimizer,
    keras.layers.Layer,
)
# What a constructor may raise when its arguments come from a stranger.
_RAISED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def arguments(cls: Any) -> tuple[str, ...]:
    """The names that a config of `cls` has: its constructor's arguments, in order.

    Where the constructor passes `**kwargs` on, the keyword-only arguments of the
    `Configured` parent are among them; its other arguments are the class's own work.
    """
    if cls in _ARGUMENTS:
        return _ARGUMENTS[cls]
    names: dict[str, None] = {}
    parents = [c for c in cls.__mro__ if "__init__" in vars(c)]
    for i, parent in enumerate(parents):
        if i and not issubclass(parent, Configured):
            break
        _, *parameters = inspect.signature(parent.__init__).parameters.values()
        for p in parameters:
            named = p.kind is p.KEYWORD_ONLY or (
                p.kind is p.POSITIONAL_OR_KEYWORD and not i
            )
            names |= {p.name: None} if named else {}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return _ARGUMENTS.setdefault(cls, tuple(names))


_ARGUMENTS: MutableMapping[Any, tuple[str, ...]] = weakref.WeakKeyDictionary()


class Configured(Worded):
    """A mix-in whose config is what the constructor was given.

    The constructor keeps each of its arguments as an attribute of the same name. What a
    parent such as a Keras layer has in its config comes first.

    Attributes:
        encoders: arguments that `encode` does not write, and what writes them.
    """

    encoders: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON-ready data, in order."""
        parent: dict[str, Any] = getattr(super(), "get_config", dict)()
        own = [name for name in arguments(type(self)) if name not in parent]
        return {**parent, **{name: self._encoded(name) for name in own}}

    def _encoded(self, name: str) -> Any:
        return self.encoders.get(name, encode)(getattr(self, name))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Builds the object from its `get_config()`."""
        names = arguments(cls)
        given = {k: decode(v) if k in names else v for k, v in config.items()}
        parent = getattr(super(), "from_config", None)
        return cls(**given) if parent is None else parent(given)


class Value(Configured):
    """A `Configured` object that is its arguments: `repr`, `==` and `hash` say so.

    Example:
        >>> from keras_dlopt.schedules import PolynomialSparsity
        >>> PolynomialSparsity(0.9, end=100)
        PolynomialSparsity(sparsity=0.9, end=100)
        >>> PolynomialSparsity(0.9, end=100) == PolynomialSparsity(0.9, end=200)
        False
    """

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON-ready data, in order."""
        return {name: self._encoded(name) for name in arguments(type(self))}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Builds the value from its `get_config()`.

        Raises:
            ConfigError: for an argument that the constructor does not take.
        """
        known = arguments(cls)
        for key in config:
            if key not in known:
                raise ConfigError(
                    f"There is no argument {key!r}. Known are: {', '.join(known)}. "
                    f"{nearest(key, known)}".rstrip()
                )
        return cls(**{key: decode(value) for key, value in config.items()})

    def __repr__(self) -> str:
        given = inspect.signature(type(self).__init__).parameters
        shown = [
            f"{name}={getattr(self, name)!r}"
            for name in arguments(type(self))
            if name not in given
            or repr(getattr(self, name)) != repr(given[name].default)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def keep(self, **values: Any) -> None:
        """Sets arguments of a `frozen` value that was made to what a check returned."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _key(self) -> tuple[Any, ...]:
        names = arguments(type(self))
        return (type(self), *(_fixed(getattr(self, name)) for name in names))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@typing.dataclass_transform(frozen_default=True)
def frozen(cls: Any = None, *, kw_only: bool = False) -> Any:
    """Makes a `Value` of its fields: a frozen dataclass with the `repr` of a `Value`.

    A subclass that adds no field needs none of it.

    Args:
        cls: the class; None where this is called with options.
        kw_only: whether its fields are given by name only.
    """
    make = dataclasses.dataclass(frozen=True, repr=False, eq=False, kw_only=kw_only)
    return make if cls is None else make(cls)


def _fixed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_fixed(v) for v in value)
    if isinstance(value, Mapping):
        return frozenset((k, _fixed(v)) for k, v in value.items())
    if isinstance(value, _KERAS) and not isinstance(value, Value):
        return _fixed(encode(value))
    return value


def encode(value: Any) -> Any:
    """`value` as JSON-ready data; objects become `{"class": ..., "config": ...}`.

    Raises:
        ConfigError: for an object of a class that is not registered.
    """
    if isinstance(value, np.generic):  # steps are often computed with NumPy
        value = value.item()
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    if isinstance(value, Mapping):
        return {k: encode(v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "to_dict"):  # selectors and recipes have a form of their own
        return value.to_dict()
    name = keras.saving.get_registered_name(type(value))
    if keras.saving.get_registered_object(name) is not None:
        config = encode(value.get_config())
        return {"class": name.removeprefix(_OWN), "config": config}
    if isinstance(value, _KERAS):
        return keras.saving.serialize_keras_object(value)
    raise ConfigError(
        f"{value!r} cannot be written as plain data: its class is not registered. "
        "Decorate it with @keras.saving.register_keras_serializable('my_package')."
    )


def decode(value: Any) -> Any:
    """What `encode` wrote, as objects again.

    Raises:
        ConfigError: for a class that is not known, and for arguments that it does not
            take; the text names the class.
    """
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"class", "config"}:
        return _built(value["class"], value["config"])
    if "class_name" in value and "config" in value:
        return _built_by_keras(value)
    return {k: decode(v) for k, v in value.items()}


def _class_of(name: str) -> Any:
    """The class of a registered name; None if nobody here has registered one."""
    find = keras.saving.get_registered_object
    cls = find(_OWN + name) or find(name)
    for late in _LATE if cls is None else ():
        importlib.import_module(late)
        cls = cls or find(_OWN + name)
    return cls


def _built(name: Any, config: Any) -> Any:
    """The object of a registered class from its config."""
    cls: Any = _class_of(name) if isinstance(name, str) else None
    if not hasattr(cls, "from_config"):
        raise ConfigError(
            f"The class {name!r} is not known. Import the module that defines it "
            "first; it must be registered with "
            "keras.saving.register_keras_serializable."
        )
    if not isinstance(config, dict):
        raise ConfigError(
            f"The config of {name} must be a dict of its arguments. "
            f"Received: {config!r}."
        )
    try:
        return cls.from_config(decode(config))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    except _RAISED as error:
        raise ConfigError(
            f"{name} cannot be made from the arguments {config!r}: {error}"
        ) from error


def _built_by_keras(data: dict[str, Any]) -> Any:
    """The schedule, optimizer or layer that Keras wrote; it imports Keras alone."""
    name = data["class_name"]
    try:
        made = keras.saving.deserialize_keras_object(data)
    except _RAISED as error:
        raise ConfigError(f"{name!r} cannot be made from {data!r}: {error}") from error
    if not isinstance(made, _KERAS):
        raise ConfigError(
            f"{name!r} is not a schedule, an optimizer or a layer. Received: {data!r}."
        )
    return made
