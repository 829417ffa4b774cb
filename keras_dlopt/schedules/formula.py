"""Schedules whose formula is written once, for the graph and for the host."""

import math
from typing import Any

import numpy as np
from keras import ops

from keras_dlopt.errors import ConfigError
from keras_dlopt.schedules.base import Schedule
from keras_dlopt.schedules.parts import value_of

SHAPES = ("linear", "cosine", "sqrt")


class FormulaSchedule(Schedule):
    """A schedule given by `formula(step, xp)`.

    `xp` is `keras.ops` with a float32 step in a train step, and NumPy with a float64
    step on the host: both offer the functions used here under the same names.
    """

    def formula(self, step: Any, xp: Any) -> Any:
        """The rate at `step`, written with the functions of `xp`."""
        raise TypeError(f"{type(self).__name__} must define `formula`.")

    def __call__(self, step):
        return ops.cast(self.formula(ops.cast(step, "float32"), ops), "float32")

    def value(self, step: int) -> float:
        """The rate at `step`, in float64."""
        return float(self.formula(np.float64(step), np))


def at(schedule: Any, step: Any, xp: Any) -> Any:
    """Another schedule's value inside a formula."""
    return value_of(schedule, int(step)) if xp is np else schedule(step)


def descent(progress: Any, shape: str, xp: Any) -> Any:
    """A curve from 1 at progress 0 to 0 at progress 1."""
    if shape == "cosine":
        return 0.5 * (1.0 + xp.cos(math.pi * progress))
    if shape == "sqrt":
        return 1.0 - xp.sqrt(progress)
    return 1.0 - progress


def check_shape(shape: str) -> str:
    """Returns a name from `SHAPES`, or raises `ConfigError`."""
    if shape not in SHAPES:
        raise ConfigError(f"shape must be one of {SHAPES}. Received: shape={shape!r}.")
    return shape
