"""Checks and plain-data forms of the arguments that all optimizers share."""

import warnings
from collections.abc import Sequence
from typing import Any

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import variable_target
from keras_dlopt.select import Selector, selector_from_dict


def learning_rate(value: Any, *, name: str) -> Any:
    """Returns a rate that is not negative; schedules and callables pass."""
    if callable(value):
        return value
    return checks.rate(
        value,
        name=name,
        hint="Weights move against the gradient already; to maximize, negate the "
        "loss. A schedule or a function without arguments will do, too.",
    )


def decay_rate(value: Any, *, name: str) -> Any:
    """Returns a rate that is not negative; Keras itself refuses None."""
    return None if value is None else checks.rate(value, name=name)


def share_kept(value: Any, *, name: str, **limits: Any) -> float:
    """Returns the share of a running mean that is kept, or raises outside [0, 1)."""
    return checks.number(
        value,
        name=name,
        **{"least": 0, "below": 1, **limits},
        hint="It is the share of the running mean that is kept at each step; 0 keeps "
        "nothing.",
    )


def selector(value: Any, *, name: str) -> Selector:
    """A selector from itself or its `to_dict()`."""
    if isinstance(value, dict):
        return selector_from_dict(value)
    return checks.instance(
        value,
        Selector,
        name=name,
        wanted="a selector",
        hint="Write for example keras_dlopt.named('kernel').",
    )


def multipliers(pairs: Sequence[Any], *, name: str) -> tuple[Any, ...]:
    """(selector, factor) pairs, checked."""
    checked = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ConfigError(
                f"{name} must be (selector, factor) pairs. "
                f"Received: {pair!r}. Write for example [(named('bias'), 2.0)]."
            )
        chooser, factor = pair
        if chooser is None:
            raise ConfigError(f"{name} holds a pair without a selector.")
        chooser = selector(chooser, name=f"The first of each pair in {name}")
        checked.append((chooser, checks.rate(factor, name=f"A factor in {name}")))
    return tuple(checked)


def chosen(chooser: Selector | None, variables: list[Any]) -> list[bool]:
    """For each variable, whether the selector matches; True everywhere for None.

    Raises:
        ConfigError: when it matches none.
    """
    if chooser is None:
        return [True] * len(variables)
    matches = [bool(chooser(variable_target(v))) for v in variables]
    if variables and not any(matches):
        raise ConfigError(
            f"The selector {chooser} matches none of the optimizer's weights: "
            f"{', '.join(repr(v.path) for v in variables)}."
        )
    return matches


def multipliers_of(pairs: Any, variables: list[Any]) -> list[float]:
    """The factor of each variable: that of the first pair that matches, else 1."""
    factors = [1.0] * len(variables)
    for chooser, factor in reversed(list(pairs)):
        for index, match in enumerate(chosen(chooser, variables)):
            factors[index] = factor if match else factors[index]
    return factors


def drop_missing(grads: list[Any], variables: list[Any]) -> tuple[list[Any], list[Any]]:
    """Leaves out the variables that got no gradient, with a warning."""
    kept = [(g, v) for g, v in zip(grads, variables, strict=True) if g is not None]
    if not kept:
        raise ConfigError("No gradients provided for any variable.")
    if len(kept) < len(variables):
        without = [
            getattr(v, "path", v.name)
            for g, v in zip(grads, variables, strict=True)
            if g is None
        ]
        warnings.warn(
            f"Gradients do not exist for variables {without} when minimizing the "
            "loss. If using `model.compile()`, did you forget to provide a `loss` "
            "argument?",
            stacklevel=3,
        )
    return [g for g, _ in kept], [v for _, v in kept]
