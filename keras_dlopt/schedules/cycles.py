"""Schedules that come back: cyclical rates and cosine with restarts."""

from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.schedules.base import Schedule, descent
from keras_dlopt.schedules.parts import check_rate, check_steps

MODES = ("triangular", "triangular2", "exp_range")
# Steps are float32 in the graph: whole numbers are exact up to here.
LAST_STEP = 2**24


@keras.saving.register_keras_serializable("keras_dlopt")
class Cyclical(Schedule):
    r"""Triangles between two rates.

    With c = floor(1 + t / (2 h)), x = |t / h - 2 c + 1|, h = half_cycle:

        lr(t) = low + (high - low) * max(0, 1 - x) * a(t)

    a(t) is 1 (`"triangular"`), 2^(1 - c) (`"triangular2"`) or gamma^t (`"exp_range"`).

    Args:
        low: lowest rate.
        high: rate at the top of the first triangle, `low` or greater.
        half_cycle: steps from the bottom to the top.
        mode: `"triangular"`, `"triangular2"` or `"exp_range"`.
        gamma: factor per step in `"exp_range"`, in (0, 1].

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> schedule = Cyclical(0.1, 0.5, half_cycle=2, mode="triangular2")
        >>> [round(schedule.value(t), 3) for t in (0, 1, 2, 4, 6)]
        [0.1, 0.3, 0.5, 0.1, 0.3]

    Source: Smith, "Cyclical Learning Rates" (arXiv:1506.01186), section 3.
    """

    def __init__(
        self,
        low: float,
        high: float,
        *,
        half_cycle: int,
        mode: str = "triangular",
        gamma: float = 0.9999,
    ):
        self.low = check_rate(low, name="low")
        self.high = check_rate(high, name="high")
        checks.ordered(low=self.low, high=self.high)
        self.half_cycle = check_steps(half_cycle, name="half_cycle")
        self.mode = checks.choice(mode, name="mode", choices=MODES)
        self.gamma = checks.share(gamma, name="gamma")

    def formula(self, step: Any, xp: Any) -> Any:
        cycle = xp.floor(1.0 + step / (2.0 * self.half_cycle))
        x = xp.abs(step / self.half_cycle - 2.0 * cycle + 1.0)
        height = (self.high - self.low) * xp.maximum(1.0 - x, 0.0)
        if self.mode == "triangular2":
            height = height * xp.power(2.0, 1.0 - cycle)
        elif self.mode == "exp_range":
            height = height * xp.power(self.gamma, step)
        return self.low + height


@keras.saving.register_keras_serializable("keras_dlopt")
class CosineRestarts(Schedule):
    r"""Cosine descents, each restarting from the top.

    Descent i takes n_i = round(first * growth^i) steps; at its step k

        lr = final + (peak * decay^i - final) * (1 + cos(pi k / n_i)) / 2

    Args:
        peak: rate at the start of the first descent.
        first: steps of the first descent.
        growth: factor from one descent's length to the next, 1 or greater.
        decay: factor from one descent's peak to the next, in (0, 1].
        final: rate that every descent goes to.

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> schedule = CosineRestarts(0.2, first=10)
        >>> [round(schedule.value(t), 3) for t in (0, 5, 10, 20, 30)]
        [0.2, 0.1, 0.2, 0.1, 0.2]

    Source: Loshchilov and Hutter, "SGDR" (arXiv:1608.03983), equation 5.
    """

    def __init__(
        self,
        peak: float,
        *,
        first: int,
        growth: float = 2.0,
        decay: float = 1.0,
        final: float = 0.0,
    ):
        self.peak = check_rate(peak, name="peak")
        self.first = check_steps(first, name="first")
        self.growth = checks.number(growth, name="growth", least=1)
        self.decay = checks.share(decay, name="decay")
        self.final = check_rate(final, name="final")
        self._starts = self._restart_steps()

    def _restart_steps(self) -> np.ndarray | None:
        """First steps of the descents, up to `LAST_STEP`; None for equal lengths."""
        if self.growth == 1:
            return None
        starts, length = [0], float(self.first)
        while starts[-1] < LAST_STEP and len(starts) < 4096:
            starts.append(starts[-1] + round(length))
            length *= self.growth
        return np.asarray(starts)

    def formula(self, step: Any, xp: Any) -> Any:
        if self._starts is None:
            number = xp.floor(step / self.first)
            begin, length = number * self.first, self.first
        else:
            # Counting is exact; the closed form's logarithm is off by one in float32.
            reached = step >= self._starts.astype("float32")
            inside = xp.sum(xp.where(reached, 1.0, 0.0))
            number = xp.minimum(inside, len(self._starts) - 1.0) - 1.0
            index = number.astype(int) if xp is np else xp.cast(number, "int32")
            begin = xp.take(self._starts.astype("float32"), index)
            length = xp.take(np.diff(self._starts).astype("float32"), index)
        top = self.peak * xp.power(self.decay, number)
        progress = xp.clip((step - begin) / length, 0.0, 1.0)
        return self.final + (top - self.final) * descent(progress, "cosine", xp)
