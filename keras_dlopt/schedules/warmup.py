"""Warm-up in front of anything, and schedules with a warm-up of their own."""

from typing import Any, ClassVar

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.schedules.base import SHAPES, Schedule, descent
from keras_dlopt.schedules.parts import as_schedule, at, check_rate, check_steps


@keras.saving.register_keras_serializable("keras_dlopt")
class Warmup(Schedule):
    r"""A linear warm-up, then another schedule from its own step 0.

        lr(t) = start + (s(0) - start) * (t + 1) / steps    for t < steps
        lr(t) = s(t - steps)                                after

    Args:
        schedule: what follows; a schedule, or a float for a constant rate.
        steps: steps of the warm-up.
        start: rate that the warm-up rises from, 0 or greater.

    Raises:
        ConfigError: for a negative rate or no steps.

    Example:
        >>> [round(Warmup(0.4, steps=4).value(t), 3) for t in range(6)]
        [0.1, 0.2, 0.3, 0.4, 0.4, 0.4]

    Source: Goyal et al., "Accurate, Large Minibatch SGD" (arXiv:1706.02677),
    section 2.2, gradual warm-up.
    """

    encoders: ClassVar = {"schedule": keras.saving.serialize_keras_object}

    def __init__(self, schedule: Any, *, steps: int, start: float = 0.0):
        self.schedule = as_schedule(schedule)
        self.steps = check_steps(steps, name="steps")
        self.start = check_rate(start, name="start")

    def formula(self, step: Any, xp: Any) -> Any:
        first = at(self.schedule, step * 0, xp)
        progress = xp.minimum((step + 1.0) / self.steps, 1.0)
        rising = self.start + (first - self.start) * progress
        after = at(self.schedule, xp.maximum(step - self.steps, 0.0), xp)
        return xp.where(step < self.steps, rising, after)


@keras.saving.register_keras_serializable("keras_dlopt")
class OneCycle(Schedule):
    r"""One rise to `peak` and one long descent; the momentum does the opposite.

    With d a curve from 1 to 0 of the given shape, T = steps, W = warmup * T:

        lr(t) = peak - (peak - peak / start_divisor) * d(t / W)          for t < W
        lr(t) = end + (peak - end) * d((t - W) / (T - W)),  end = peak / final_divisor

    and `momentum(t)` goes from `high_momentum` to `low_momentum` and back with the same
    curves. `callbacks.ScheduledMomentum(schedule)` gives it to the optimizer.

    Args:
        peak: highest rate.
        steps: steps of the whole cycle.
        warmup: share of the steps in the rise, in (0, 1).
        start_divisor: peak divided by the first rate, 1 or greater.
        final_divisor: peak divided by the last rate, 1 or greater.
        shape: `"cosine"`, `"linear"` or `"sqrt"`.
        low_momentum: momentum at the peak, in [0, 1).
        high_momentum: momentum at both ends, in [0, 1).

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> cycle = OneCycle(0.1, steps=100, shape="linear")
        >>> [round(x, 4) for x in (cycle.value(0), cycle.value(30), cycle.momentum(30))]
        [0.004, 0.1, 0.85]

    Source: Smith and Topin, "Super-Convergence" (arXiv:1708.07120), section 2.
    Differs from the paper: cosine by default, and one descent instead of a symmetric
    one followed by an annihilation phase, as most implementations have it.
    """

    def __init__(
        self,
        peak: float,
        *,
        steps: int,
        warmup: float = 0.3,
        start_divisor: float = 25.0,
        final_divisor: float = 1e4,
        shape: str = "cosine",
        low_momentum: float = 0.85,
        high_momentum: float = 0.95,
    ):
        self.peak = check_rate(peak, name="peak")
        self.steps = check_steps(steps, name="steps")
        self.warmup = checks.fraction(warmup, name="warmup")
        self.start_divisor = checks.number(start_divisor, name="start_divisor", least=1)
        self.final_divisor = checks.number(final_divisor, name="final_divisor", least=1)
        self.shape = checks.choice(shape, name="shape", choices=SHAPES)
        self.low_momentum = checks.decay(low_momentum, name="low_momentum")
        self.high_momentum = checks.decay(high_momentum, name="high_momentum")

    def formula(self, step: Any, xp: Any) -> Any:
        return self._cycle(
            step,
            xp,
            first=self.peak / self.start_divisor,
            middle=self.peak,
            last=self.peak / self.final_divisor,
        )

    def momentum(self, step: int) -> float:
        """The momentum at `step`, on the host."""
        return float(self.momentum_formula(np.float64(step), np))

    def momentum_formula(self, step: Any, xp: Any) -> Any:
        """The momentum at `step`, written with the functions of `xp`."""
        high = self.high_momentum
        return self._cycle(step, xp, first=high, middle=self.low_momentum, last=high)

    def _cycle(
        self, step: Any, xp: Any, *, first: float, middle: float, last: float
    ) -> Any:
        rise = self.warmup * self.steps
        before = xp.clip(step / rise, 0.0, 1.0)
        after = xp.clip((step - rise) / (self.steps - rise), 0.0, 1.0)
        rising = middle + (first - middle) * descent(before, self.shape, xp)
        falling = last + (middle - last) * descent(after, self.shape, xp)
        return xp.where(step < rise, rising, falling)


@keras.saving.register_keras_serializable("keras_dlopt")
class WarmupStableDecay(Schedule):
    r"""A warm-up, a long constant stretch, and a decay at the end.

    With T = steps, W = warmup * T, D = decay * T, and d a curve from 1 to 0:

        lr(t) = peak * (t + 1) / W                                      for t < W
        lr(t) = peak                                                    for t <= T - D
        lr(t) = final + (peak - final) * d((t - (T - D)) / D)           after

    Training can be continued from the end of the constant stretch with more steps.

    Args:
        peak: rate of the constant stretch.
        steps: steps of the whole training.
        warmup: share of the steps in the warm-up, in [0, 1).
        decay: share of the steps in the decay, in [0, 1).
        shape: of the decay, `"sqrt"` (1 - sqrt), `"linear"` or `"cosine"`.
        final: rate at the end.

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> wsd = WarmupStableDecay(0.1, steps=100, shape="linear", decay=0.5)
        >>> [round(wsd.value(t), 4) for t in (0, 20, 50, 75, 100)]
        [0.02, 0.1, 0.1, 0.05, 0.0]

    Source: Hu et al., "MiniCPM" (arXiv:2404.06395), section 4.2; the shape `"sqrt"`
    from Haegele et al. (arXiv:2405.18392), section 3.
    """

    def __init__(
        self,
        peak: float,
        *,
        steps: int,
        warmup: float = 0.05,
        decay: float = 0.2,
        shape: str = "sqrt",
        final: float = 0.0,
    ):
        self.peak = check_rate(peak, name="peak")
        self.steps = check_steps(steps, name="steps")
        self.warmup = checks.decay(warmup, name="warmup")
        self.decay = checks.decay(decay, name="decay")
        if self.warmup + self.decay > 1:
            raise ConfigError(
                "Warm-up and decay are parts of one training: their sum must be at "
                f"most 1. Received: warmup={warmup}, decay={decay}."
            )
        self.shape = checks.choice(shape, name="shape", choices=SHAPES)
        self.final = check_rate(final, name="final")

    def formula(self, step: Any, xp: Any) -> Any:
        rise, fall = self.warmup * self.steps, self.decay * self.steps
        rising = self.peak * xp.minimum((step + 1.0) / max(rise, 1.0), 1.0)
        progress = xp.clip((step - (self.steps - fall)) / max(fall, 1.0), 0.0, 1.0)
        curve = descent(progress, self.shape, xp)
        falling = self.final + (self.peak - self.final) * curve
        return xp.where(step < rise, rising, falling)


@keras.saving.register_keras_serializable("keras_dlopt")
class PowerCooldown(Schedule):
    r"""A rate that falls as a power of the step, with a cooldown at the end.

    With T = steps, C = cooldown * T:

        lr(t) = peak * min(1, knee / (t + 1))^power * min(1, (T - t) / C)

    Away from the cooldown it does not depend on the length of the training, so a rate
    found in a short run holds in a long one.

    Args:
        peak: highest rate.
        steps: steps of the whole training.
        knee: step after which the rate falls.
        power: exponent, 0 or greater; 0.51 in the source.
        cooldown: share of the steps in the linear cooldown to 0, in [0, 1).

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> schedule = PowerCooldown(0.1, steps=1000, knee=100, power=0.5, cooldown=0.1)
        >>> [round(schedule.value(t), 4) for t in (0, 99, 399, 1000)]
        [0.1, 0.1, 0.05, 0.0]

    Source: Shen et al., "Power Scheduler" (arXiv:2408.13359), equation 3:
    min(max, a n^b) with n in tokens. Differs from the paper: a is given by `knee`, the
    step at which the two meet, and the cooldown is linear.
    """

    def __init__(
        self,
        peak: float,
        *,
        steps: int,
        knee: int,
        power: float = 0.51,
        cooldown: float = 0.1,
    ):
        self.peak = check_rate(peak, name="peak")
        self.steps = check_steps(steps, name="steps")
        self.knee = check_steps(knee, name="knee")
        self.power = check_rate(power, name="power")
        self.cooldown = checks.decay(cooldown, name="cooldown")

    def formula(self, step: Any, xp: Any) -> Any:
        falling = xp.power(xp.minimum(self.knee / (step + 1.0), 1.0), self.power)
        left = (self.steps - step) / max(self.cooldown * self.steps, 1.0)
        return self.peak * falling * xp.clip(left, 0.0, 1.0)
