"""ReduceLROnPlateau that also works on top of a schedule."""

import math
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.callbacks.base import InGraphCallback
from keras_dlopt.callbacks.controller import Controller
from keras_dlopt.callbacks.in_graph import hub_of
from keras_dlopt.errors import ConfigError
from keras_dlopt.schedules.parts import check_steps

MODES = ("min", "max")


class _Passive(Controller):
    """Keeps `best`, `wait` and `cooldown` where checkpoints find them, in float64."""

    key = "plateau"

    def __init__(self, best: float):
        self.best = best

    def initial(self, model):
        self.host = np.asarray([self.best, 0.0, 0.0], "float64")
        return []

    def after_step(self, state, seen):
        return state, 1.0, None


@keras.saving.register_keras_serializable("keras_dlopt")
class ReduceOnPlateau(InGraphCallback):
    r"""Lowers the learning rate when a monitored value stops improving.

    After each epoch: if the value is better than the best by more than `min_delta`, it
    becomes the best; otherwise, outside the cooldown, one more epoch has been waited.
    After `patience` such epochs the rate is multiplied by `factor`, not below
    `min_rate`, and `cooldown` epochs follow that do not count.

    On an optimizer with a schedule the whole schedule is multiplied, through
    `schedules.Scaled`; `keras.callbacks.ReduceLROnPlateau` raises TypeError there.
    After training the schedule keeps the factor.

    Its state is part of what `BackupAndRestore` saves. Place it before
    `BackupAndRestore` in the list of callbacks, since both act at the epoch's end.

    Args:
        monitor: name in the epoch's logs.
        factor: what the rate is multiplied with, in (0, 1).
        patience: epochs without improvement before a lowering.
        mode: `"min"` if lower is better, `"max"` if higher is.
        min_delta: smallest change that counts as an improvement.
        cooldown: epochs after a lowering that do not count.
        min_rate: the rate is not lowered below this.

    Raises:
        ConfigError: for arguments out of range; at an epoch's end when `monitor` is not
            in the logs.

    Example:
        >>> ReduceOnPlateau(patience=3, factor=0.2).get_config()["factor"]
        0.2
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        factor: float = 0.1,
        patience: int = 10,
        mode: str = "min",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_rate: float = 0.0,
    ):
        self.monitor = monitor
        self.factor = checks.fraction(factor, name="factor")
        self.patience = check_steps(patience, name="patience", unit="epochs")
        self.mode = checks.choice(mode, name="mode", choices=MODES)
        self.min_delta = checks.number(min_delta, name="min_delta", least=0)
        self.cooldown = check_steps(cooldown, name="cooldown", least=0, unit="epochs")
        self.min_rate = checks.rate(min_rate, name="min_rate")
        super().__init__()

    def make_controller(self) -> Controller:
        """State only: the decisions are made at the epoch's end."""
        return _Passive(math.inf if self.mode == "min" else -math.inf)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        logs = logs or {}
        if self.monitor not in logs:
            raise ConfigError(
                f"The monitored value {self.monitor!r} is not in the logs. Available: "
                f"{sorted(logs)}. Values that start with val_ need validation_data."
            )
        hub = hub_of(self.model)
        assert self.controller.host is not None  # since `fit` began
        state = map(float, self.controller.host)
        *state, lower = self._judge(float(logs[self.monitor]), *state)
        self.controller.host = np.asarray(state, "float64")
        rate = self.current_rate()
        if lower and rate > self.min_rate:
            lowered = max(rate * self.factor, self.min_rate)
            hub.rate.set_position(hub.rate.position(), lowered / rate)

    def _judge(self, value: float, best: float, wait: float, cool: float) -> Any:
        sign = 1.0 if self.mode == "min" else -1.0
        if cool > 0:
            cool, wait = cool - 1, 0.0
        if sign * value < sign * best - self.min_delta:
            return value, 0.0, cool, False
        if cool > 0:
            return best, wait, cool, False
        if wait + 1 >= self.patience:
            return best, 0.0, float(self.cooldown), True
        return best, wait + 1, cool, False
