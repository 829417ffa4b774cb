"""What the schedules share: checks, floats as schedules, nested configs."""

import math
from typing import Any

import keras
from keras import ops

from keras_dlopt.errors import ConfigError
from keras_dlopt.schedules.base import Schedule

UNITS = {"steps": "training steps (batches), not epochs"}


def check_rate(value: float, *, name: str) -> float:
    """Returns a learning rate as a float, finite and not negative.

    Raises:
        ConfigError: otherwise.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value < 0
    ):
        raise ConfigError(
            f"{name} must be a number, 0 or greater. Received: {value!r}. "
            "Learning rates are usually between 1e-5 and 1."
        )
    return float(value)


def check_steps(value: int, *, name: str, minimum: int = 1, unit: str = "steps") -> int:
    """Returns a number of training steps, or of another unit, as an int.

    Raises:
        ConfigError: if it is not an integer of at least `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(
            f"{name} must be an integer, {minimum} or greater. Received: {value!r}. "
            f"Count in {UNITS.get(unit, unit)}."
        )
    return int(value)


@keras.saving.register_keras_serializable("keras_dlopt")
class Constant(Schedule):
    """The same rate at every step.

    Args:
        rate: learning rate, 0 or greater.

    Raises:
        ConfigError: for a negative rate.

    Example:
        >>> Constant(0.1).value(7)
        0.1
    """

    def __init__(self, rate: float):
        self.rate = check_rate(rate, name="rate")

    def __call__(self, step):
        return ops.cast(self.rate, "float32")

    def value(self, step: int) -> float:
        """The rate, in float64."""
        return self.rate

    def next_due(self, step: int) -> int | None:
        """None: the value never changes."""
        return None

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {"rate": self.rate}


def as_schedule(schedule: Any) -> Any:
    """A float as a `Constant`; schedules as they are.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        return schedule
    if isinstance(schedule, int | float) and not isinstance(schedule, bool):
        return Constant(schedule)
    raise ConfigError(
        "Expected a schedule (an instance of keras.optimizers.schedules."
        f"LearningRateSchedule) or a float. Received: {schedule!r}."
    )


def value_of(schedule: Any, step: int) -> float:
    """The value of any schedule, Keras' own included, on the host."""
    if isinstance(schedule, Schedule):
        return schedule.value(step)
    return float(ops.convert_to_numpy(schedule(step)))


def deserialized(config: dict, *names: str) -> dict:
    """A copy of `config` in which the named entries are objects again."""
    config = dict(config)
    for name in names:
        if isinstance(config[name], dict):
            config[name] = keras.saving.deserialize_keras_object(config[name])
    return config
