"""The learning rate of an optimizer as something that can be multiplied."""

import contextlib
from typing import Any

import keras
from keras import ops

from keras_dlopt import runtime
from keras_dlopt.callbacks.state import index_of, make_slot
from keras_dlopt.errors import ConfigError
from keras_dlopt.schedules import Scaled

# Attributes under which wrapping optimizers keep the one that has the rate.
WRAPPED = ("inner_optimizer", "base")


class Rate:
    """Where the rate of a model's optimizer is kept.

    Attributes:
        kind: `"variable"` or `"schedule"`; part of the key of a traced function.
        slots: state variables that the hub must keep and save.
    """

    kind = "variable"

    def __init__(self, optimizer: keras.optimizers.Optimizer):
        self.optimizer = optimizer
        self.slots: list[keras.Variable] = []

    def install(self) -> None:
        """Called before the train function is made."""

    def uninstall(self) -> None:
        """Called after training."""

    def current(self):
        """The rate of the coming step (TensorFlow graph)."""
        return runtime.value(self.optimizer.learning_rate)

    def set(self, value: float) -> None:
        """Sets the rate of the coming step, on the host."""
        self.optimizer.learning_rate = value

    def position(self) -> float:
        """What `multiply` multiplies, on the host: the rate, or a schedule's factor."""
        return float(runtime.to_numpy(self.optimizer.learning_rate))

    def set_position(self, value: float) -> None:
        """Sets what `position` returns."""
        self.optimizer.learning_rate = value

    def multiply(self, factor) -> None:
        """Multiplies the rate (TensorFlow graph, or host)."""
        variable = self.optimizer.learning_rate
        variable.assign(ops.cast(runtime.value(variable) * factor, variable.dtype))

    def traced(self, optimizer_values, values):
        """The rate of the coming step, from the JAX trainer's state."""
        return optimizer_values[self._index()]

    def multiplied(self, optimizer_values, values, factor):
        """The JAX trainer's optimizer state and the hub's, rate multiplied."""
        i = self._index()
        changed = list(optimizer_values)
        changed[i] = ops.cast(changed[i] * factor, self.optimizer.learning_rate.dtype)
        return changed, values

    def bound(self, values):
        """A context in which the optimizer reads the hub's traced state (JAX)."""
        return contextlib.nullcontext()

    def _index(self) -> int:
        return index_of(self.optimizer.variables, self.optimizer.learning_rate)


class ScheduledRate(Rate):
    """A schedule times a factor that the callbacks change."""

    kind = "schedule"

    def __init__(self, model: keras.Model, schedule: Any):
        super().__init__(model.optimizer)
        factor = schedule.factor if isinstance(schedule, Scaled) else 1.0
        base = schedule.schedule if isinstance(schedule, Scaled) else schedule
        self.scaled = Scaled(base, factor=factor)
        self._slot = make_slot(model, factor)
        self.slots = [self._slot]

    def install(self) -> None:
        self.scaled.bind(self._slot)
        self.optimizer.learning_rate = self.scaled

    def uninstall(self) -> None:
        self.scaled.bind(None)

    def current(self):
        return ops.convert_to_tensor(self.optimizer.learning_rate)

    def set(self, value: float) -> None:
        raise ConfigError(
            "The optimizer's rate is a schedule and can only be multiplied. "
            f"Received: {self.scaled.schedule!r}, rate={value}. Compile with a float "
            "learning_rate to have it set."
        )

    def position(self) -> float:
        return float(runtime.to_numpy(self._slot))

    def set_position(self, value: float) -> None:
        self._slot.assign(value)

    def multiply(self, factor) -> None:
        self._slot.assign(runtime.value(self._slot) * factor)

    def traced(self, optimizer_values, values):
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        i = index_of(self.optimizer.variables, inner.variables[0])
        return self.scaled.schedule(optimizer_values[i]) * values[0]

    def multiplied(self, optimizer_values, values, factor):
        return optimizer_values, [values[0] * factor, *values[1:]]

    def bound(self, values):
        return self.scaled.bound(values[0])


def rate_of(model: keras.Model) -> Rate:
    """How the learning rate of the model's optimizer can be changed.

    Raises:
        ConfigError: if the optimizer's rate is neither a number nor a schedule.
    """
    optimizer = model.optimizer
    if isinstance(optimizer.learning_rate, keras.Variable):
        return Rate(optimizer)
    return ScheduledRate(model, schedule_of(optimizer))


def schedule_of(optimizer: Any) -> Any:
    """An equal copy of the optimizer's schedule, read from its config.

    Raises:
        ConfigError: if it has none, or one that cannot be rebuilt.
    """
    inner = optimizer
    for name in WRAPPED:
        inner = getattr(inner, name, None) or inner
    try:
        config = inner.get_config()["learning_rate"]
        schedule = keras.optimizers.schedules.deserialize(config)
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:
        raise _cannot_drive(inner) from error
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        raise _cannot_drive(inner)
    return schedule


def _cannot_drive(optimizer: Any) -> ConfigError:
    return ConfigError(
        "This callback cannot drive the learning rate of the optimizer "
        f"{type(optimizer).__name__}: it is neither a number nor a serializable "
        "LearningRateSchedule. Pass a float, or a schedule whose class is registered "
        "with keras.saving.register_keras_serializable and has get_config()."
    )
