"""Argument checks of the callbacks."""

import math

from keras_dlopt.errors import ConfigError


def check_in(
    value: float,
    low: float,
    high: float,
    *,
    name: str,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Returns `value` as a float between `low` and `high`.

    Raises:
        ConfigError: if it is outside, or no finite number.
    """
    number = not isinstance(value, bool) and isinstance(value, int | float)
    inside = (
        number
        and math.isfinite(value)
        and (value > low if open_low else value >= low)
        and (value < high if open_high else value <= high)
    )
    if not inside:
        left = "(" if open_low else "["
        right = ")" if open_high or math.isinf(high) else "]"
        raise ConfigError(
            f"{name} must be a number in {left}{low:g}, {high:g}{right}. "
            f"Received: {name}={value!r}. See the callback's documentation for its "
            "unit and usual values."
        )
    return float(value)


def check_positive(value: float, *, name: str) -> float:
    """Returns a positive finite number as a float.

    Raises:
        ConfigError: otherwise.
    """
    return check_in(value, 0.0, math.inf, name=name, open_low=True)
