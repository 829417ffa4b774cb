"""Argument checks of the schedules."""

from keras_dlopt.errors import ConfigError


def check_share(
    value: float, *, name: str, open_low: bool = False, rest: float = 0.0
) -> float:
    """Returns a share in [0, 1) as a float; with `rest` it stays at most 1.

    Raises:
        ConfigError: if it is outside.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (value > 0 if open_low else value >= 0) or not value < 1:
        left = "(" if open_low else "["
        raise ConfigError(
            f"{name} must be a number in {left}0, 1). Received: {name}={value!r}."
        )
    if value + rest > 1:
        raise ConfigError(
            f"The parts of the schedule exceed the whole: {name}={value} and "
            f"{rest} before it. Their sum must be at most 1."
        )
    return float(value)


def check_divisor(value: float, *, name: str) -> float:
    """Returns a number of at least 1 as a float.

    Raises:
        ConfigError: if it is smaller.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not value >= 1:
        raise ConfigError(f"{name} must be 1 or greater. Received: {name}={value!r}.")
    return float(value)
