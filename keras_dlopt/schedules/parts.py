"""What the schedules share: checks with their units, and floats as schedules."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.schedules.base import Schedule


def check_rate(value: float, *, name: str) -> float:
    """Returns a learning rate as a float, finite and not negative, or raises."""
    return checks.rate(
        value, name=name, hint="Learning rates are usually between 1e-5 and 1."
    )


def check_steps(
    value: int,
    *,
    name: str,
    least: int = 1,
    unit: str = "training steps (batches), not epochs",
) -> int:
    """Returns a number of training steps, or of another unit, as an int, or raises."""
    return checks.whole(value, name=name, least=least, hint=f"Count in {unit}.")


def check_sparsity(value: float, *, name: str = "sparsity") -> float:
    """Returns a share of zeros as a float in [0, 1), or raises."""
    return checks.decay(
        value,
        name=name,
        hint="0.9 keeps one weight in ten; to drop a whole layer, remove it from the "
        "model.",
    )


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

    def formula(self, step: Any, xp: Any) -> Any:
        return self.rate

    def next_due(self, step: int) -> int | None:
        """None: the value never changes."""
        return None


def as_schedule(schedule: Any) -> Any:
    """A number as a `Constant`; schedules as they are.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        return schedule
    try:
        return Constant(schedule)
    except ConfigError:
        raise checks.refused(
            schedule,
            name="A schedule",
            wanted="an instance of keras.optimizers.schedules.LearningRateSchedule, "
            "or a number, 0 or greater",
        ) from None


def value_of(schedule: Any, step: int) -> float:
    """The value of any schedule, Keras' own included, on the host."""
    if isinstance(schedule, Schedule):
        return schedule.value(step)
    return float(ops.convert_to_numpy(schedule(step)))


def at(schedule: Any, step: Any, xp: Any) -> Any:
    """Another schedule's value inside a formula."""
    return value_of(schedule, int(step)) if xp is np else schedule(step)
