"""Hyper-parameters that a class declares; its constructor and config follow from them.

    class Signs(Optimizer):
        beta: float = hyper(default=0.9, check=share_kept)

gives `Signs(learning_rate=0.001, *, beta=0.9, cautious=False, ...)`, an attribute
`beta` that was checked, and the key `"beta"` in the config.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any, ClassVar

from keras_dlopt import checks
from keras_dlopt.words import Worded


@dataclasses.dataclass(frozen=True, eq=False)
class Hyper:
    """One hyper-parameter: its default, and what returns it checked."""

    default: Any
    check: Callable[..., Any]
    limits: dict[str, Any]

    def checked(self, value: Any, name: str) -> Any:
        """The value as plain data, or `ConfigError`; None passes where it is given."""
        if self.default is None:
            return checks.optional(self.check, value, name=name, **self.limits)
        return self.check(value, name=name, **self.limits)


def hyper(*, default: Any, check: Callable[..., Any], **limits: Any) -> Any:
    """Declares a hyper-parameter in the body of a class.

    Args:
        default: the constructor's default; None also allows None.
        check: `(value, name=..., **limits)` -> the value, or `ConfigError`.
        **limits: of the check, such as `least=0`.
    """
    return Hyper(default, check, limits)


def anything(value: Any, *, name: str) -> Any:
    """Lets pass what somebody else checks."""
    return value


@typing.dataclass_transform(field_specifiers=(hyper,))
class Declared(Worded):
    """A mixin that makes the constructor of a class from what it declares."""

    hypers: ClassVar[dict[str, Hyper]] = {}
    # Arguments that the parent's constructor takes and keeps.
    of_parent: ClassVar[tuple[str, ...]] = ()
    # Whether all that the class declares, not the learning rate alone, may be given by
    # position, as in the Keras class of the same name.
    by_position: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        own = {name: v for name, v in vars(cls).items() if isinstance(v, Hyper)}
        for name in own:
            delattr(cls, name)  # may hide a property of a base class
        known = {**own, **{n: h for n, h in cls.hypers.items() if n not in own}}
        first = {name: known[name] for name in ("learning_rate",) if name in known}
        cls.hypers = {**first, **known}
        if own and "__init__" not in vars(cls):
            cls.__init__ = _constructor(cls, own)  # type: ignore[method-assign]

    def __init__(self, **given: Any):
        values = self.checked(given)
        own = [name for name in self.hypers if name not in self.of_parent]
        kept = {name: values.pop(name) for name in own}
        super().__init__(**values)
        for name, value in kept.items():
            setattr(self, name, value)

    @classmethod
    def checked(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Every declared argument, checked; what is not declared, as it is."""
        values = {
            name: one.checked(given.get(name, one.default), name)
            for name, one in cls.hypers.items()
        }
        return {**values, **{n: v for n, v in given.items() if n not in values}}


def _constructor(cls: type[Declared], own: dict[str, Hyper]) -> Any:
    """An `__init__` with a signature that names each argument."""
    kind = inspect.Parameter
    positional = own if cls.by_position else ()
    parameters = [
        kind(
            name,
            kind.POSITIONAL_OR_KEYWORD
            if name in positional or name == "learning_rate"
            else kind.KEYWORD_ONLY,
            default=one.default,
        )
        for name, one in cls.hypers.items()
    ]
    signature = inspect.Signature([*parameters, kind("options", kind.VAR_KEYWORD)])

    def __init__(self, *arguments, **options):
        bound = signature.bind(*arguments, **options).arguments
        rest = bound.pop("options", {})
        super(cls, self).__init__(**bound, **rest)

    this = kind("self", kind.POSITIONAL_ONLY)
    made: Any = __init__
    made.__signature__ = signature.replace(
        parameters=[this, *signature.parameters.values()]
    )
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    return made
