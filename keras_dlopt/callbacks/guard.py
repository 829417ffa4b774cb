"""Takes back steps that broke the model, and lowers the rate."""

import math
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.callbacks.base import InGraphCallback
from keras_dlopt.callbacks.controller import Controller, Seen
from keras_dlopt.callbacks.in_graph import hub_of
from keras_dlopt.callbacks.noise import SILENCE, Noise, listen
from keras_dlopt.callbacks.snapshot import Snapshot
from keras_dlopt.runtime import to_numpy
from keras_dlopt.schedules.parts import check_steps

# What the loss may rise by without harm: this share of its fall, and so many mean
# differences between two batches.
SHARE, NOISES = 0.1, 3.0


class _Guard(Controller):
    """State: smoothed loss, its weight, the first, the lowest, exploded, undone.

    Then, apart, the noise of the loss.
    """

    key = "guard"
    uses_loss = True
    leads_rate = False
    undoes = True

    def __init__(self, factor: float, explosion: float, smoothing: int):
        self.factor = factor
        self.explosion = explosion
        self.smoothing = smoothing

    def initial(self, model):
        return [np.asarray([0.0, 0.0, 0.0, math.inf, 0.0, 0.0]), np.asarray(SILENCE)]

    def after_step(self, state, seen: Seen):
        mean, weight, first, lowest, exploded, undone = (state[0][i] for i in range(6))
        keep = _all_finite(seen)
        if seen.loss is None:  # nothing to judge but whether all is finite
            undone = undone + ops.where(keep, 0.0, 1.0)
            judged = ops.stack([mean, weight, first, lowest, exploded, undone])
            return [judged, state[1]], ops.where(keep, 1.0, self.factor), keep
        keep = ops.logical_and(ops.isfinite(seen.loss), keep)
        loss = ops.where(keep, ops.cast(seen.loss, "float32"), 0.0)
        noise = listen(
            Noise(*(state[1][i] for i in range(3))),
            loss,
            finite=keep,
            first=weight <= 0.0,
            steps=float(self.smoothing),
        )
        share = ops.where(keep, 1.0 / self.smoothing, 0.0)
        mean = (1.0 - share) * mean + share * loss
        weight = (1.0 - share) * weight + share
        smooth = mean / ops.maximum(weight, 1e-30)
        started = lowest < math.inf
        first = ops.where(started, first, smooth)
        lowest = ops.where(weight > 0.0, ops.minimum(lowest, smooth), lowest)
        fall = ops.where(weight > 0.0, first - lowest, 0.0)
        rise = self.explosion * (SHARE * fall + NOISES * noise.level())
        bursts = ops.logical_and(weight > 0.0, smooth > lowest + rise)
        exploded = ops.where(bursts, 1.0, exploded)
        undone = undone + ops.where(keep, 0.0, 1.0)
        judged = ops.stack([mean, weight, first, lowest, exploded, undone])
        return [judged, ops.stack(list(noise))], ops.where(keep, 1.0, self.factor), keep


def _all_finite(seen: Seen):
    assert seen.variables is not None
    floats = [
        v for v in seen.variables if "float" in keras.backend.standardize_dtype(v.dtype)
    ]
    broken = [ops.logical_not(ops.all(ops.isfinite(v))) for v in floats]
    # Replicas may differ in their BatchNorm statistics: all must agree.
    return seen.total(ops.cast(ops.any(ops.stack(broken)), "float32")) < 0.5


@keras.saving.register_keras_serializable("keras_dlopt")
class DivergenceGuard(InGraphCallback):
    r"""Undoes steps that are not finite; rolls back when the loss explodes.

    In the train step: if the loss, a weight or an optimizer variable is not finite
    after a step, all of them get their values from before it (the step counter too),
    and the rate is multiplied by `factor`. NaN gradients therefore never reach the
    optimizer's state, with `steps_per_execution > 1` either.

    Between executions: the weights and the optimizer are copied at the start of every
    epoch. With s_t the smoothed loss, s_1 its first value, l_t its lowest so far and
    a_t the mean of |L_t - L_{t-1}|, each counted up to 4 times that mean, training has
    exploded when

        s_t - l_t > explosion * (0.1 (s_1 - l_t) + 3 a_t).

    A constant added to the loss changes nothing: it may be near 0 or negative.

    Every `check_every` executions the host looks (one small read); after an explosion
    it brings the copy back, multiplies the rate by `factor` and starts the statistics
    afresh. After `max_rollbacks` in one epoch it stops the training with a warning.

    A train step of the model's own may have several optimizers: all are undone, and
    the rates of all are lowered. Where it reports no `"loss"`, nothing is rolled back.

    An optimizer with a schedule gets its whole schedule multiplied. The undo holds one
    more copy of weights and optimizer state during a step.

    Args:
        factor: what the rate is multiplied with, in (0, 1).
        explosion: by how much the rise of the loss exceeds a tenth of its fall and 3
            times its noise when it counts as an explosion, a factor above 1.
        smoothing: steps that the smoothed loss averages over, about.
        check_every: executions (batches, for `steps_per_execution=1`) between looks.
        max_rollbacks: rollbacks in one epoch before the training is stopped.

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> DivergenceGuard(factor=0.25).get_config()["factor"]
        0.25
    """

    # A rollback must not run beside the next step.
    async_safe = False

    def __init__(
        self,
        *,
        factor: float = 0.5,
        explosion: float = 3.0,
        smoothing: int = 20,
        check_every: int = 10,
        max_rollbacks: int = 5,
    ):
        self.factor = checks.fraction(factor, name="factor")
        self.explosion = checks.number(explosion, name="explosion", above=1)
        self.smoothing = check_steps(smoothing, name="smoothing")
        self.check_every = check_steps(check_every, name="check_every")
        self.max_rollbacks = check_steps(
            max_rollbacks, name="max_rollbacks", unit="rollbacks"
        )
        self.rollbacks = 0
        self._executions = 0
        self._copy: Snapshot | None = None
        self._slot: Any = None
        self._noise: Any = None
        super().__init__()

    def make_controller(self) -> Controller:
        """Undo and detection; the rollback is done on the host."""
        return _Guard(self.factor, self.explosion, self.smoothing)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._slot, self._noise = hub_of(self.model).slots(self.controller)

    def on_epoch_begin(self, epoch, logs=None):
        self.rollbacks = 0
        hub_of(self.model).when_ready(self._keep)

    def _keep(self):
        self._copy = Snapshot(self.model)

    def on_train_batch_end(self, batch, logs=None):
        self._executions += 1
        if self._executions % self.check_every == 0:
            self._check()

    def on_epoch_end(self, epoch, logs=None):
        self._check()
        super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs=None):
        self._copy = None
        super().on_train_end(logs)

    @property
    def undone(self) -> int:
        """Steps taken back since training began."""
        return int(to_numpy(self._slot)[5])

    def _check(self) -> None:
        state = to_numpy(self._slot)  # the model is left alone: JAX would synchronize
        if state[4] < 0.5:
            return
        assert self._copy is not None
        rate = hub_of(self.model).rate
        position = rate.position()
        self._copy.restore()
        rate.set_position(position, self.factor)
        fresh, silence = self.controller.initial(self.model)
        fresh[5] = state[5]
        self._slot.assign(fresh)
        self._noise.assign(silence)
        self.rollbacks += 1
        if self.rollbacks >= self.max_rollbacks:
            self.model.stop_training = True
            warnings.warn(
                f"DivergenceGuard stopped the training: the loss exploded "
                f"{self.rollbacks} times in one epoch, the last time at a rate of "
                f"{self.current_rate() / self.factor:g}. The weights are those of the "
                "epoch's start. Start from a lower rate or check the data.",
                stacklevel=2,
            )
