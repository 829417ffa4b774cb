"""One way to check an argument, and one verdict for the same kind everywhere.

Each function takes a value and the argument's name, and returns the plain Python value
or raises `ConfigError` with one form of text:

    <name> must be <what>. Received: <value>. <what to do>

NumPy's numbers and arrays of no dimension are numbers; `True` and `False` are not. NaN
and infinities are refused unless a check says otherwise.

Example:
    >>> import numpy as np
    >>> number(np.float32(0.5), name="share", least=0, below=1)
    0.5
    >>> whole(np.int64(3), name="steps", least=1)
    3
    >>> choice("mena", name="pooling", choices=("mean", "max"))
    Traceback (most recent call last):
    keras_dlopt.errors.ConfigError: pooling must be 'mean' or 'max'. Received: 'mena'. \
Did you mean 'mean'?
"""

import difflib
import itertools
import math
import numbers
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import numpy as np

from keras_dlopt.errors import ConfigError

T = TypeVar("T")

# A longer repr is cut here: arrays and models are named, not printed.
LONGEST = 200


def refused(value: Any, *, name: str, wanted: str, hint: str = "") -> ConfigError:
    """The error for an argument that is not what it must be, in the one form.

    Args:
        value: what was given.
        name: of the argument.
        wanted: what it must be, such as `"a number in [0, 1)"`.
        hint: what to do next, one or more sentences.
    """
    text = f"{name} must be {wanted}. Received: {_shown(value)}."
    return ConfigError(f"{text} {hint}" if hint else text)


def _shown(value: Any) -> str:
    try:
        shown = repr(value)
    except Exception:  # such as a whole number of more digits than Python prints
        return f"a value of the type {type(value).__name__}"
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."


def _plain(value: Any, kind: Any) -> Any:
    """The Python number of a `numbers` kind that `value` is; None for anything else."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool) or not isinstance(value, kind):
        return None
    try:
        return int(value) if kind is numbers.Integral else float(value)
    except OverflowError:  # a whole number beyond the largest float
        return None


def _range(
    kind: str,
    least: float | None,
    above: float | None,
    most: float | None,
    below: float | None,
) -> str:
    """The words for a range: `a number in [0, 1)`, `a number, 0 or greater`."""
    low, high = (above if least is None else least), (below if most is None else most)
    if low is not None and high is not None:
        left, right = "(" if least is None else "[", ")" if most is None else "]"
        return f"{kind} in {left}{low:g}, {high:g}{right}"
    if least is not None:
        return f"{kind}, {least:g} or greater"
    if above is not None:
        article, noun = kind.split(" ", 1)
        return f"{article} positive {noun}" if above == 0 else f"{kind} above {above:g}"
    if high is not None:
        return f"{kind} below {high:g}" if most is None else f"{kind}, {high:g} or less"
    return kind


def _inside(
    value: float,
    least: float | None,
    above: float | None,
    most: float | None,
    below: float | None,
) -> bool:
    return (
        (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )


def number(
    value: Any,
    *,
    name: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    infinite: bool = False,
    hint: str = "",
) -> float:
    """Returns a number as a float.

    Args:
        value: what was given.
        name: of the argument.
        least: lowest value allowed; `above` leaves the bound itself out.
        above: bound that it must exceed.
        most: highest value allowed; `below` leaves the bound itself out.
        below: bound that it must stay under.
        infinite: whether infinities are allowed.
        hint: what to do next.

    Raises:
        ConfigError: for anything else.
    """
    plain: float | None = _plain(value, numbers.Real)
    if (
        plain is None
        or math.isnan(plain)
        or not (infinite or math.isfinite(plain))
        or not _inside(plain, least, above, most, below)
    ):
        wanted = _range("a number", least, above, most, below)
        raise refused(value, name=name, wanted=wanted, hint=hint)
    return plain


def whole(
    value: Any,
    *,
    name: str,
    least: int | None = None,
    most: int | None = None,
    hint: str = "",
) -> int:
    """Returns a whole number as an int; 3.0 is not one.

    Args:
        value: what was given.
        name: of the argument.
        least: lowest value allowed.
        most: highest value allowed.
        hint: what to do next.

    Raises:
        ConfigError: for anything else.
    """
    plain: int | None = _plain(value, numbers.Integral)
    if plain is None or not _inside(plain, least, None, most, None):
        wanted = _range("a whole number", least, None, most, None)
        raise refused(value, name=name, wanted=wanted, hint=hint)
    return plain


def positive(value: Any, *, name: str, hint: str = "") -> float:
    """Returns a finite number above 0 as a float, or raises `ConfigError`."""
    return number(value, name=name, above=0, hint=hint)


def rate(value: Any, *, name: str, hint: str = "") -> float:
    """Returns a finite number of at least 0 as a float, or raises `ConfigError`."""
    return number(value, name=name, least=0, hint=hint)


def probability(value: Any, *, name: str, hint: str = "") -> float:
    """Returns a number in [0, 1] as a float, or raises `ConfigError`."""
    return number(value, name=name, least=0, most=1, hint=hint)


def decay(value: Any, *, name: str, hint: str = "") -> float:
    """Returns a number in [0, 1) as a float, or raises `ConfigError`."""
    return number(value, name=name, least=0, below=1, hint=hint)


def share(value: Any, *, name: str, hint: str = "") -> float:
    """Returns a number in (0, 1] as a float, or raises `ConfigError`."""
    return number(value, name=name, above=0, most=1, hint=hint)


def fraction(value: Any, *, name: str, hint: str = "") -> float:
    """Returns a number in (0, 1) as a float, or raises `ConfigError`."""
    return number(value, name=name, above=0, below=1, hint=hint)


def count(value: Any, *, name: str, hint: str = "") -> int:
    """Returns a whole number of at least 1 as an int, or raises `ConfigError`."""
    return whole(value, name=name, least=1, hint=hint)


def seed(value: Any, *, name: str = "seed", hint: str = "") -> int:
    """Returns a whole number of at least 0 as an int, or raises `ConfigError`."""
    return whole(value, name=name, least=0, hint=hint)


def boolean(value: Any, *, name: str, hint: str = "") -> bool:
    """Returns True or False, NumPy's too; raises `ConfigError` for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise refused(value, name=name, wanted="True or False", hint=hint)
    return bool(value)


def text(value: Any, *, name: str, hint: str = "") -> str:
    """Returns a string that is not empty, or raises `ConfigError`."""
    if not isinstance(value, str) or not value:
        raise refused(value, name=name, wanted="a text", hint=hint)
    return str(value)


def function(value: Callable[..., T], *, name: str, hint: str = "") -> Callable[..., T]:
    """Returns what can be called, or raises `ConfigError`."""
    if not callable(value):
        raise refused(value, name=name, wanted="a function", hint=hint)
    return value


def nearest(value: Any, known: Collection[Any]) -> str:
    """The sentence `Did you mean 'x'?` where one of the texts is near, else nothing."""
    if not isinstance(value, str):
        return ""
    texts = [k for k in known if isinstance(k, str)]
    near = difflib.get_close_matches(value.lower(), texts, n=1)
    return f"Did you mean {near[0]!r}?" if near else ""


def choice(value: Any, *, name: str, choices: Collection[T], hint: str = "") -> T:
    """Returns the one of `choices` that `value` equals.

    Args:
        value: what was given.
        name: of the argument.
        choices: a few texts, None among them where it is allowed.
        hint: what to do next; without one, the nearest of the choices is proposed.

    Raises:
        ConfigError: for anything else.
    """
    for known in choices:
        same = isinstance(value, str) and isinstance(known, str) and value == known
        if same or value is known:
            return known
    names = [repr(known) for known in choices]
    wanted = f"one of {', '.join(names)}" if len(names) > 2 else " or ".join(names)
    advice = " ".join(part for part in (nearest(value, choices), hint) if part)
    raise refused(value, name=name, wanted=wanted, hint=advice)


def instance(
    value: Any, kind: type[T], *, name: str, wanted: str | None = None, hint: str = ""
) -> T:
    """Returns an object of a class.

    Args:
        value: what was given.
        kind: the class.
        name: of the argument.
        wanted: what it must be in words, with an example; the class's name if None.
        hint: what to do next.

    Raises:
        ConfigError: for anything else.
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOUaeiou" else "a"
        wanted = wanted or f"{article} {kind.__name__}"
        raise refused(value, name=name, wanted=wanted, hint=hint)
    return value


def several(
    values: Any,
    check: Callable[..., T],
    *,
    name: str,
    length: int | None = None,
    hint: str = "",
    **options: Any,
) -> tuple[T, ...]:
    """Returns a tuple of which each element passed a check.

    Args:
        values: a list, a tuple, or a NumPy array of one dimension.
        check: a function of this module.
        name: of the argument.
        length: how many; None for any number but none.
        hint: what to do next.
        **options: of `check`.

    Raises:
        ConfigError: for anything else.
    """
    flat = isinstance(values, np.ndarray) and values.ndim == 1
    listed = flat or isinstance(values, list | tuple)
    if not listed or len(values) != (length or max(len(values), 1)):
        wanted = "a tuple" if length is None else f"a tuple of {length}"
        raise refused(values, name=name, wanted=wanted, hint=hint)
    return tuple(
        check(value, name=f"{name}[{i}]", hint=hint, **options)
        for i, value in enumerate(values)
    )


def optional(
    check: Callable[..., T], value: Any, *, name: str, **options: Any
) -> T | None:
    """Returns None for None, and otherwise what a check of this module returns.

    Args:
        check: such as `whole`.
        value: what was given.
        name: of the argument.
        **options: of `check`.

    Raises:
        ConfigError: for what the check refuses; its text says that None is allowed.
    """
    if value is None:
        return None
    try:
        return check(value, name=name, **options)
    except ConfigError as error:
        said = str(error).replace(". Received: ", ", or None. Received: ", 1)
        raise ConfigError(said) from None


def ordered(*, strict: bool = False, hint: str = "", **values: Any) -> None:
    """Raises `ConfigError` unless each value is as large as the one before it.

    Args:
        strict: whether equal values are refused too.
        hint: what to do next.
        **values: by the name of the argument, in order; None is passed over.

    Example:
        >>> ordered(low=0.1, high=0.1)
        >>> ordered(low=0.1, high=0.1, strict=True)
        Traceback (most recent call last):
        keras_dlopt.errors.ConfigError: low < high must hold. Received: low=0.1, \
high=0.1.
    """
    known = {name: value for name, value in values.items() if value is not None}
    for a, b in itertools.pairwise(known.values()):
        if not (a < b if strict else a <= b):
            order = (" < " if strict else " <= ").join(known)
            given = ", ".join(
                f"{name}={_shown(value)}" for name, value in known.items()
            )
            text = f"{order} must hold. Received: {given}."
            raise ConfigError(f"{text} {hint}" if hint else text)
