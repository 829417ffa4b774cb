"""Sparsity schedules: the share of weights that are zero, by training step."""

from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.schedules.base import Schedule, descent, next_on_grid
from keras_dlopt.schedules.parts import check_sparsity, check_steps


class SparsitySchedule(Schedule):
    """No zeros before step `begin`; from there on what `level` says.

    Attributes:
        sparsity: final share of zeros.
        begin: first step at which weights are removed.
        end: last step at which the mask changes; None for no last one.
        frequency: steps between two updates of the mask.
    """

    sparsity: float
    begin: int
    end: int | None
    frequency: int

    def _set_steps(self, begin: int, end: int | None, frequency: int) -> None:
        self.begin = check_steps(begin, name="begin", least=0)
        self.end = checks.optional(check_steps, end, name="end", least=0)
        self.frequency = check_steps(frequency, name="frequency")
        checks.ordered(begin=self.begin, end=self.end, hint="Count in training steps.")

    def level(self, step: Any, xp: Any) -> Any:
        """The sparsity from `begin` on, written with the functions of `xp`."""
        return self.sparsity

    def formula(self, step: Any, xp: Any) -> Any:
        return xp.where(step >= self.begin, self.level(step, xp), 0.0)

    def next_due(self, step: int) -> int | None:
        """The next step at which the mask is chosen anew."""
        return next_on_grid(step, self.begin, self.end, self.frequency)


@keras.saving.register_keras_serializable("keras_dlopt")
class ConstantSparsity(SparsitySchedule):
    """The same sparsity from step `begin` on, the mask chosen anew now and then.

    Args:
        sparsity: share of the weights set to zero, in [0, 1).
        begin: first step at which weights are removed.
        end: last step at which the mask is chosen anew; None for no last step.
        frequency: steps between two choices of the mask.

    Raises:
        ConfigError: for a sparsity outside [0, 1) or steps out of order.

    Example:
        >>> ConstantSparsity(0.5, begin=100).value(100)
        0.5

    Source: TensorFlow Model Optimization, `pruning_schedule.ConstantSparsity`.
    """

    def __init__(
        self,
        sparsity: float,
        *,
        begin: int = 0,
        end: int | None = None,
        frequency: int = 100,
    ):
        self.sparsity = check_sparsity(sparsity)
        self._set_steps(begin, end, frequency)


@keras.saving.register_keras_serializable("keras_dlopt")
class PolynomialSparsity(SparsitySchedule):
    r"""Sparsity that rises from `initial` to `sparsity`, fast first.

    With progress p = clip((step - begin) / (end - begin), 0, 1):

        s(step) = sparsity + (initial - sparsity) * (1 - p)^power

    Args:
        sparsity: final share of zeros, in [0, 1).
        end: step at which `sparsity` is reached.
        begin: first step at which weights are removed.
        initial: share of zeros at `begin`, in [0, 1).
        power: exponent; 3 removes most weights early, 1 is linear.
        frequency: steps between two updates; `end` is always one.

    Raises:
        ConfigError: for a sparsity outside [0, 1) or steps out of order.

    Example:
        >>> PolynomialSparsity(0.9, end=1000, power=1).value(500)
        0.45

    Source: Zhu and Gupta, "To prune, or not to prune" (arXiv:1710.01878), equation 1.
    """

    end: int

    def __init__(
        self,
        sparsity: float,
        *,
        end: int,
        begin: int = 0,
        initial: float = 0.0,
        power: float = 3.0,
        frequency: int = 100,
    ):
        self.sparsity = check_sparsity(sparsity)
        self.initial = check_sparsity(initial, name="initial")
        self._set_steps(begin, check_steps(end, name="end", least=0), frequency)
        self.power = checks.positive(power, name="power", hint="1 is linear.")

    def level(self, step: Any, xp: Any) -> Any:
        length = max(self.end - self.begin, 1)
        progress = xp.clip((step - self.begin) / length, 0.0, 1.0)
        progress = xp.where(step >= self.end, 1.0, progress)
        curve = descent(progress, self.power, xp)
        return self.sparsity + (self.initial - self.sparsity) * curve

    def next_due(self, step: int) -> int | None:
        """The next step at which the mask changes; `end` is always one."""
        due = super().next_due(step)
        return self.end if due is None and step < self.end else due
