"""A schedule: step -> float, for learning rates, sparsity, temperature and bits."""

import inspect
from typing import Any

import keras
from keras import ops


def call_text(made: Any) -> str:
    """The call that makes an object, with the arguments that are not the default.

    Example:
        >>> from keras_dlopt.schedules import PolynomialSparsity
        >>> call_text(PolynomialSparsity(0.9, end=100))
        'PolynomialSparsity(sparsity=0.9, end=100)'
    """
    shown = []
    for name, parameter in inspect.signature(type(made)).parameters.items():
        if hasattr(made, name):
            value = repr(getattr(made, name))
            shown += [f"{name}={value}"] if value != repr(parameter.default) else []
    return f"{type(made).__name__}({', '.join(shown)})"


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A value that depends on the training step alone.

    One type serves two callers. Inside a train step it is called with a traced step
    (`schedule(step)`, written in `keras.ops`), so it can be given to any optimizer as
    `learning_rate`. Between steps, transforms read it on the host with `value(step)`.

    Subclasses write `__call__` and `get_config`, and `next_due` where the value changes
    on few steps only.
    """

    def value(self, step: int) -> float:
        """The schedule at `step`, on the host.

        Args:
            step: number of training steps done so far.
        """
        return float(ops.convert_to_numpy(self(step)))

    def next_due(self, step: int) -> int | None:
        """The first step after `step` at which a reader should look again.

        Args:
            step: number of training steps done so far; -1 before the first.

        Returns:
            A step greater than `step`, or None when the value stays as it is.
        """
        return step + 1

    def __repr__(self) -> str:
        return call_text(self)

    @classmethod
    def from_config(cls, config: dict) -> "Schedule":
        """Builds the schedule from its `get_config()`."""
        return cls(**config)
