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
        schedule: what the rate follows, if it is a schedule.
    """

    kind = "variable"
    schedule: Any = None

    def __init__(self, optimizer: keras.optimizers.Optimizer, *, owner: Any):
        self.optimizer = optimizer
        self.owner = owner  # whose variables the trainer hands over
        self.slots: list[keras.Variable] = []

    def install(self) -> None:
        """Called before the train function is made."""

    def uninstall(self) -> None:
        """Called after training."""

    def current(self):
        """The rate of the coming step (TensorFlow graph)."""
        return runtime.value(self.optimizer.learning_rate)

    def now(self) -> float:
        """The rate of the coming step, on the host."""
        return float(runtime.to_numpy(self.optimizer.learning_rate))

    def set(self, value: float) -> None:
        """Sets the rate of the coming step, on the host."""
        self.optimizer.learning_rate = value

    def position(self) -> Any:
        """What `multiply` multiplies, on the host: the rate, or a schedule's factor."""
        return self.now()

    def set_position(self, value: Any, factor: float = 1.0) -> None:
        """Sets what `position` returned, times a factor."""
        self.optimizer.learning_rate = value * factor

    def multiply(self, factor) -> None:
        """Multiplies the rate (TensorFlow graph)."""
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
        return index_of(self.owner.variables, self.optimizer.learning_rate)


class ScheduledRate(Rate):
    """A schedule times a factor that the callbacks change."""

    kind = "schedule"

    def __init__(self, model: keras.Model, optimizer: Any, schedule: Any, *, at: int):
        super().__init__(optimizer, owner=model.optimizer)
        factor = schedule.factor if isinstance(schedule, Scaled) else 1.0
        self.schedule = schedule.schedule if isinstance(schedule, Scaled) else schedule
        self.scaled = Scaled(self.schedule, factor=factor)
        self._slot = make_slot(model, factor)
        self.slots = [self._slot]
        self._at = at  # its slot's place among the hub's

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

    def set_position(self, value: Any, factor: float = 1.0) -> None:
        self._slot.assign(value * factor)

    def multiply(self, factor) -> None:
        self._slot.assign(runtime.value(self._slot) * factor)

    def traced(self, optimizer_values, values):
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        i = index_of(self.owner.variables, inner.variables[0])
        return self.scaled.schedule(optimizer_values[i]) * values[self._at]

    def multiplied(self, optimizer_values, values, factor):
        changed = list(values)
        changed[self._at] = changed[self._at] * factor
        return optimizer_values, changed

    def bound(self, values):
        return self.scaled.bound(values[self._at])


class ManyRates(Rate):
    """The rates of several optimizers, all multiplied alike.

    The last one speaks for all: of a `MultiOptimizer` with an `OptimizerMap`, that of
    the default optimizer. Set to a value, the others keep their ratio to it.
    """

    def __init__(self, model: keras.Model, optimizers: list[Any]):
        self.parts: list[Rate] = []
        self.slots = []
        for optimizer in optimizers:
            part = _one_rate(model, optimizer, at=len(self.slots))
            self.parts.append(part)
            self.slots += part.slots
        self.lead = self.parts[-1]
        scheduled = [p for p in self.parts if p.kind != "variable"]
        if scheduled:
            self.kind, self.schedule = scheduled[0].kind, scheduled[0].schedule

    def install(self) -> None:
        for part in self.parts:
            part.install()

    def uninstall(self) -> None:
        for part in self.parts:
            part.uninstall()

    def current(self):
        return self.lead.current()

    def now(self) -> float:
        return self.lead.now()

    def set(self, value: float) -> None:
        factor = value / self.lead.now() if self.lead.now() else 1.0
        for part in self.parts[:-1]:
            part.set(part.now() * factor)
        self.lead.set(value)

    def position(self) -> list[Any]:
        return [part.position() for part in self.parts]

    def set_position(self, value: Any, factor: float = 1.0) -> None:
        for part, one in zip(self.parts, value, strict=True):
            part.set_position(one, factor)

    def multiply(self, factor) -> None:
        for part in self.parts:
            part.multiply(factor)

    def traced(self, optimizer_values, values):
        return self.lead.traced(optimizer_values, values)

    def multiplied(self, optimizer_values, values, factor):
        for part in self.parts:
            optimizer_values, values = part.multiplied(optimizer_values, values, factor)
        return optimizer_values, values

    @contextlib.contextmanager
    def bound(self, values):
        with contextlib.ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.bound(values))
            yield


def rate_of(model: keras.Model, optimizers: list[Any] | None = None) -> Rate:
    """How the learning rate of the model's optimizer can be changed.

    Args:
        model: compiled.
        optimizers: those that its own train step uses in place of the compiled one.

    Raises:
        ConfigError: if the optimizer's rate is neither a number nor a schedule, or its
            optimizers are not known yet.
    """
    if optimizers is not None:
        return ManyRates(model, optimizers)
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not isinstance(optimizer, keras.optimizers.MultiOptimizer):
        return _one_rate(model, model.optimizer, at=0)
    if not optimizer.optimizers and model.built:
        model.optimizer.build(model.trainable_variables)
    if not optimizer.optimizers:
        raise ConfigError(
            "The optimizers of a MultiOptimizer that is made from a function are not "
            "known before the model is built. Received: a model without weights. Give "
            "it a keras.Input, or use a keras.optimizers.OptimizerMap."
        )
    return ManyRates(model, list(optimizer.optimizers))


def _one_rate(model: keras.Model, optimizer: Any, *, at: int) -> Rate:
    if isinstance(optimizer.learning_rate, keras.Variable):
        return Rate(optimizer, owner=model.optimizer)
    return ScheduledRate(model, optimizer, schedule_of(optimizer), at=at)


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
