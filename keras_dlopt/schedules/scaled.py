"""A schedule times a factor that callbacks may change while training."""

import contextlib
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.schedules.base import Schedule
from keras_dlopt.schedules.parts import as_schedule, at


@keras.saving.register_keras_serializable("keras_dlopt")
class Scaled(Schedule):
    """Another schedule times a factor.

        lr(step) = factor * schedule(step)

    `callbacks.ReduceOnPlateau` and `callbacks.DivergenceGuard` put it around the
    schedule of an optimizer and lower the factor while training.

    Args:
        schedule: a schedule, or a float for a constant rate.
        factor: what its values are multiplied with, dimensionless, positive.

    Raises:
        ConfigError: for a factor that is not positive, or no schedule.

    Example:
        >>> Scaled(0.1, factor=0.5).value(0)
        0.05
    """

    encoders: ClassVar = {"schedule": keras.saving.serialize_keras_object}

    def __init__(self, schedule: Any, *, factor: float = 1.0):
        self.schedule = as_schedule(schedule)
        self._factor = checks.positive(
            factor, name="factor", hint="0.5 halves every rate of the schedule."
        )
        self._live: Any = None

    @property
    def factor(self) -> float:
        """The factor now."""
        if self._live is not None:
            return float(ops.convert_to_numpy(self._live.value))
        return self._factor

    def bind(self, variable: keras.Variable | None) -> None:
        """Takes the factor from `variable` from now on; None keeps its last value."""
        self._factor = self.factor
        self._live = variable

    @contextlib.contextmanager
    def bound(self, value: Any) -> Any:
        """Uses a traced value as the factor inside the context."""
        before, self._live = self._live, value
        try:
            yield
        finally:
            self._live = before

    def formula(self, step: Any, xp: Any) -> Any:
        traced = self._factor if self._live is None else self._live
        return at(self.schedule, step, xp) * (self.factor if xp is np else traced)
