"""A schedule times a factor that callbacks may change while training."""

import contextlib
from typing import Any

import keras
from keras import ops

from keras_dlopt.errors import ConfigError
from keras_dlopt.schedules.base import Schedule
from keras_dlopt.schedules.parts import as_schedule, deserialized, value_of


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

    def __init__(self, schedule: Any, *, factor: float = 1.0):
        if not isinstance(factor, int | float) or not factor > 0:
            raise ConfigError(
                f"factor must be a positive number. Received: {factor!r}. "
                "0.5 halves every rate of the schedule."
            )
        self.schedule = as_schedule(schedule)
        self._factor = float(factor)
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
    def bound(self, value: Any):
        """Uses a traced value as the factor inside the context."""
        before, self._live = self._live, value
        try:
            yield
        finally:
            self._live = before

    def __call__(self, step):
        factor = self._factor if self._live is None else self._live
        return self.schedule(step) * factor

    def value(self, step: int) -> float:
        """The rate at `step`, in float64."""
        return value_of(self.schedule, step) * self.factor

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "factor": self.factor,
        }

    @classmethod
    def from_config(cls, config: dict) -> "Scaled":
        """Builds the schedule from its `get_config()`."""
        return cls(**deserialized(config, "schedule"))
