"""Sparsity schedules: the share of weights that are zero, by training step."""

import numbers

import keras
from keras import ops

from keras_dlopt.errors import ConfigError
from keras_dlopt.schedules.base import Schedule


def check_sparsity(value: float, *, name: str = "sparsity") -> float:
    """Returns `value` as a float in [0, 1), or raises `ConfigError`."""
    if not isinstance(value, numbers.Real) or not 0.0 <= value < 1.0:
        raise ConfigError(
            f"{name} must be a number in [0, 1). Received: {value!r}. "
            "0.9 keeps one weight in ten; to drop a whole layer, remove it from the "
            "model."
        )
    return float(value)


def check_range(begin: int, end: int | None, frequency: int) -> None:
    """Raises `ConfigError` for steps out of order or a frequency below 1."""
    if begin < 0 or (end is not None and end < begin):
        raise ConfigError(
            "Steps must satisfy 0 <= begin <= end. "
            f"Received: begin={begin}, end={end}. Count in training steps (batches)."
        )
    if frequency < 1:
        raise ConfigError(
            f"frequency must be at least 1 step. Received: frequency={frequency}."
        )


@keras.saving.register_keras_serializable("keras_dlopt")
class ConstantSparsity(Schedule):
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
        check_range(begin, end, frequency)
        self.begin, self.end, self.frequency = begin, end, frequency

    def __call__(self, step):
        step = ops.cast(step, "float32")
        return ops.where(step >= self.begin, self.sparsity, 0.0)

    def value(self, step: int) -> float:
        """The sparsity at `step`, in float64."""
        return self.sparsity if step >= self.begin else 0.0

    def next_due(self, step: int) -> int | None:
        """The next step at which the mask is chosen anew."""
        return next_on_grid(step, self.begin, self.end, self.frequency)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            "sparsity": self.sparsity,
            "begin": self.begin,
            "end": self.end,
            "frequency": self.frequency,
        }


@keras.saving.register_keras_serializable("keras_dlopt")
class PolynomialSparsity(Schedule):
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
        check_range(begin, end, frequency)
        if power <= 0:
            raise ConfigError(f"power must be positive. Received: power={power}.")
        self.begin, self.end = begin, end
        self.power, self.frequency = power, frequency

    def __call__(self, step):
        step = ops.cast(step, "float32")
        length = max(self.end - self.begin, 1)
        progress = ops.clip((step - self.begin) / length, 0.0, 1.0)
        value = self.sparsity + (self.initial - self.sparsity) * ops.power(
            1.0 - progress, self.power
        )
        return ops.where(step >= self.begin, value, 0.0)

    def value(self, step: int) -> float:
        """The sparsity at `step`, in float64."""
        if step < self.begin:
            return 0.0
        progress = min((step - self.begin) / max(self.end - self.begin, 1), 1.0)
        if step >= self.end:
            progress = 1.0
        return self.sparsity + (self.initial - self.sparsity) * (1 - progress) ** (
            self.power
        )

    def next_due(self, step: int) -> int | None:
        """The next step at which the mask changes."""
        due = next_on_grid(step, self.begin, self.end, self.frequency)
        return self.end if due is None and step < self.end else due

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            "sparsity": self.sparsity,
            "end": self.end,
            "begin": self.begin,
            "initial": self.initial,
            "power": self.power,
            "frequency": self.frequency,
        }


def next_on_grid(step: int, begin: int, end: int | None, every: int) -> int | None:
    """The first of begin, begin + every, ... after `step` and not after `end`."""
    if step < begin:
        return begin
    due = begin + ((step - begin) // every + 1) * every
    return due if end is None or due <= end else None
