"""Checks and plain-data forms of the arguments that all optimizers share."""

import warnings
from collections.abc import Sequence
from typing import Any

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import variable_target
from keras_dlopt.select import Selector, selector_from_dict


def check_rate(rate: Any, *, name: str = "learning_rate") -> None:
    """Raises `ConfigError` for a negative rate; schedules and callables pass."""
    if isinstance(rate, int | float) and not rate >= 0.0:
        raise ConfigError(
            f"{name} must not be negative. Received: {rate}. Weights move against the "
            "gradient already; to maximize, negate the loss."
        )


def check_beta(value: float, *, name: str) -> float:
    """Returns a decay rate of a running mean, or raises outside [0, 1)."""
    if not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise ConfigError(
            f"{name} must be in [0, 1). Received: {value}. It is the share of the "
            "running mean that is kept at each step; 0 keeps nothing."
        )
    return float(value)


def check_positive(value: float, *, name: str) -> float:
    """Returns a positive number, or raises."""
    if not isinstance(value, int | float) or not value > 0.0:
        raise ConfigError(f"{name} must be positive. Received: {value}.")
    return float(value)


def check_count(value: int, *, name: str, least: int = 1) -> int:
    """Returns a whole number of at least `least`, or raises."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(
            f"{name} must be a whole number of at least {least}. Received: {value!r}."
        )
    return value


def selector(value: Any, *, name: str) -> Selector | None:
    """A selector from itself, its `to_dict()`, or None."""
    if isinstance(value, dict):
        return selector_from_dict(value)
    if value is None or isinstance(value, Selector):
        return value
    raise ConfigError(
        f"{name} must be a selector. Received: {value!r}. Write for example "
        "keras_dlopt.named('kernel')."
    )


def multiplier_pairs(pairs: Sequence[Any]) -> tuple[tuple[Selector, float], ...]:
    """(selector, factor) pairs, checked."""
    checked = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ConfigError(
                "multipliers must be (selector, factor) pairs. "
                f"Received: {pair!r}. Write for example [(named('bias'), 2.0)]."
            )
        chooser, factor = pair
        check_rate(factor, name="A factor in multipliers")
        chooser = selector(chooser, name="The first of each pair in multipliers")
        if chooser is None:
            raise ConfigError("multipliers holds a pair without a selector.")
        checked.append((chooser, float(factor)))
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


def check_above(value: float, limit: float, *, name: str) -> float:
    """Returns a number above `limit`, or raises."""
    if not isinstance(value, int | float) or not value > limit:
        raise ConfigError(f"{name} must be above {limit}. Received: {value}.")
    return float(value)
