"""Argument checks and shapes that several layers share."""

from typing import Any

import keras

from keras_dlopt import checks

Shape = tuple[int | None, ...]


def counts(owner: str, **values: Any) -> tuple[int, ...]:
    """Returns whole numbers of at least 1 as ints, in order, or raises."""
    return tuple(checks.count(v, name=f"{owner}: {k}") for k, v in values.items())


def survival(owner: str, value: float) -> float:
    """Returns the probability that a body is kept, in (0, 1], or raises."""
    return checks.share(
        value,
        name=f"{owner}: survival",
        hint="It is the probability that the body is kept: 1 never drops it, 0.8 drops "
        "it in one step out of five.",
    )


def data_format(owner: str, value: str | None) -> str:
    """The data format to use; None means Keras' global one."""
    return checks.choice(
        value or keras.config.image_data_format(),
        name=f"{owner}: data_format",
        choices=("channels_last", "channels_first"),
    )


def channel_axis(data_format: str) -> int:
    """Axis of the channels, as `BatchNormalization` takes it."""
    return -1 if data_format == "channels_last" else 1


def addable(left: Shape, right: Shape) -> bool:
    """Whether two shapes are equal, as far as they are known."""
    return len(left) == len(right) and all(
        a is None or b is None or a == b for a, b in zip(left, right, strict=True)
    )
