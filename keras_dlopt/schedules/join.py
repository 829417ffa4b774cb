"""Schedules one after the other."""

from collections.abc import Sequence
from typing import Any, ClassVar

import keras

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.schedules.base import Schedule
from keras_dlopt.schedules.parts import as_schedule, at, check_steps


@keras.saving.register_keras_serializable("keras_dlopt")
class Join(Schedule):
    r"""Several schedules in turn.

        lr(t) = s_i(t - b_i)    for b_i <= t < b_{i+1}, with b_0 = 0

    Args:
        schedules: schedules or floats, in order.
        boundaries: first steps of the second, third, ... schedule, rising; one fewer
            than the schedules.
        restart: whether each schedule starts from its own step 0; otherwise all read
            the step of the training, and the -b_i is left out.

    Raises:
        ConfigError: if the numbers do not match or the boundaries do not rise.

    Example:
        >>> steps = Join([0.1, 0.01, 0.001], boundaries=[10, 20])
        >>> [steps.value(t) for t in (9, 10, 25)]
        [0.1, 0.01, 0.001]
    """

    encoders: ClassVar = {"schedules": keras.saving.serialize_keras_object}

    def __init__(
        self,
        schedules: Sequence[Any],
        *,
        boundaries: Sequence[int],
        restart: bool = True,
    ):
        self.schedules = [as_schedule(schedule) for schedule in schedules]
        self.boundaries = [
            check_steps(step, name="every boundary") for step in boundaries
        ]
        if len(self.schedules) != len(self.boundaries) + 1:
            raise ConfigError(
                "Join needs one boundary between every two schedules. Received: "
                f"{len(self.schedules)} schedules, {len(self.boundaries)} boundaries."
            )
        if sorted(set(self.boundaries)) != self.boundaries:
            raise ConfigError(
                f"boundaries must rise. Received: boundaries={list(boundaries)}."
            )
        self.restart = checks.boolean(restart, name="restart")

    def formula(self, step: Any, xp: Any) -> Any:
        value = at(self.schedules[0], step, xp)
        for begin, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            own = xp.maximum(step - begin, 0.0) if self.restart else step
            value = xp.where(step < begin, value, at(schedule, own, xp))
        return value
