"""Argument checks and shapes that several layers share."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_dlopt.errors import ConfigError

Shape = tuple[int | None, ...]


def check_choice(owner: str, name: str, value: Any, choices: Sequence) -> None:
    """Raises `ConfigError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(
            f"{owner}: {name} must be one of {', '.join(map(repr, choices))}. "
            f"Received: {value!r}."
        )


def check_survival(owner: str, value: float) -> float:
    """Returns `value` as a float in (0, 1], or raises `ConfigError`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0.0 < value <= 1.0:
        raise ConfigError(
            f"{owner}: survival must be in (0, 1]. Received: {value!r}. It is the "
            "probability that the body is kept: 1 never drops it, 0.8 drops it in one "
            "step out of five."
        )
    return float(value)


def check_count(owner: str, **values: int) -> None:
    """Raises `ConfigError` unless every value is an integer of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(
                f"{owner}: {name} must be an integer of at least 1. "
                f"Received: {value!r}."
            )


def data_format(owner: str, value: str | None) -> str:
    """The data format to use; None means Keras' global one."""
    value = value or keras.config.image_data_format()
    check_choice(owner, "data_format", value, ("channels_last", "channels_first"))
    return value


def channel_axis(data_format: str) -> int:
    """Axis of the channels, as `BatchNormalization` takes it."""
    return -1 if data_format == "channels_last" else 1


def addable(left: Shape, right: Shape) -> bool:
    """Whether two shapes are equal, as far as they are known."""
    return len(left) == len(right) and all(
        a is None or b is None or a == b for a, b in zip(left, right, strict=True)
    )
