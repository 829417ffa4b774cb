"""The learning-rate range test."""

import dataclasses
import os
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.callbacks.base import InGraphCallback
from keras_dlopt.callbacks.controller import Controller, Seen
from keras_dlopt.callbacks.in_graph import hub_of
from keras_dlopt.callbacks.snapshot import Snapshot
from keras_dlopt.drawing import AFTER, BEFORE, GREEN, drawing, finished
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.runtime import to_numpy
from keras_dlopt.schedules.parts import check_steps

LEAST_STEPS = 10


class _RangeTest(Controller):
    """State: steps done, and the loss of each."""

    key = "finder"
    wants_loss = True

    def __init__(self, steps: int, growth: float):
        self.steps, self.growth = steps, growth

    def initial(self, model):
        return [np.zeros(()), np.full(self.steps, np.nan)]

    def after_step(self, state, seen: Seen):
        step, losses = state
        here = ops.equal(ops.arange(self.steps, dtype="float32"), step)
        losses = ops.where(here, ops.cast(seen.loss, "float32"), losses)
        return [step + 1.0, losses], self.growth, None


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """What a range test measured.

    Attributes:
        rates: learning rate of each step.
        losses: loss of the batch at each step.
        smoothed: the losses, exponentially smoothed.
        suggestion: a rate to train with; None if the loss never fell.
        diverged: lowest rate at which the loss had exploded; None if it did not.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float | None
    diverged: float | None

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draws the smoothed loss over the rate.

        Args:
            path: of the file to write, `.png` or `.svg`; None writes nothing.

        Returns:
            The `matplotlib.figure.Figure`.
        """
        figure, axes = drawing(3.6)
        axes.plot(self.rates, self.losses, color=BEFORE, lw=0.8, label="batch")
        axes.plot(self.rates, self.smoothed, color=AFTER, label="smoothed")
        if self.suggestion is not None:
            axes.axvline(
                self.suggestion,
                color=GREEN,
                linestyle="--",
                label=f"suggestion {self.suggestion:.2g}",
            )
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss")
        axes.set_title("Learning-rate range test")
        axes.legend(frameon=False)
        return finished(figure, path)


def analyse(
    rates: np.ndarray, losses: np.ndarray, *, smoothing: int, explosion: float
) -> RangeTest:
    """Smooths a range test and chooses the rate of the steepest descent.

    With s the smoothed loss, the suggestion is the rate at the lowest ds / d log lr
    (central differences) between the first steps of the smoothing and the lowest s. A
    test ends for this purpose where s is not finite, or above its lowest so far by more
    than `explosion` times what it had fallen by until then and the spread of the losses
    together. The spread is 1.48 times the median distance from their median, the
    standard deviation of normal noise.
    """
    keep = 1.0 - 1.0 / smoothing
    mean, weight, smoothed = 0.0, 0.0, []
    for loss in losses:
        mean, weight = keep * mean + (1 - keep) * loss, keep * weight + (1 - keep)
        smoothed.append(mean / weight)
    s = np.asarray(smoothed)
    burst = ~np.isfinite(s) | _explodes(s, losses, explosion)
    end = int(np.argmax(burst)) if burst.any() else len(s)
    begin = min(smoothing, end // 4)
    bottom = int(np.argmin(s[:end])) if end else 0
    suggestion = None
    if bottom - begin >= 2:
        slope = np.gradient(s[:end], np.log(rates[:end]))[begin : bottom + 1]
        if slope.min() < 0:
            suggestion = float(rates[begin + int(np.argmin(slope))])
    diverged = float(rates[end]) if end < len(s) else None
    return RangeTest(rates, losses, s, suggestion, diverged)


def _explodes(s: np.ndarray, losses: np.ndarray, explosion: float) -> np.ndarray:
    """Where the smoothed loss is far above its lowest so far."""
    known = np.where(np.isfinite(s), s, np.inf)
    lowest = np.minimum.accumulate(known)
    place = np.maximum.accumulate(np.where(known <= lowest, np.arange(len(s)), 0))
    before = np.maximum.accumulate(np.where(np.isfinite(s), s, -np.inf))[place]
    usual = losses[np.isfinite(losses)]
    spread = 1.48 * np.median(np.abs(usual - np.median(usual))) if len(usual) else 0.0
    with np.errstate(invalid="ignore"):  # a test that was broken from its first step
        return known - lowest > explosion * (before - lowest + spread)


@keras.saving.register_keras_serializable("keras_dlopt")
class LearningRateFinder(InGraphCallback):
    r"""Trains a little while the rate grows, then puts everything back.

    At step t = 0, 1, ... the rate is low * (high / low)^(t / (steps - 1)). Afterwards
    weights, seeds, optimizer variables and rate are what they were, to the bit, and
    `result` holds rates, losses and a suggestion: the rate at which the smoothed loss
    falls fastest. The rates and losses are recorded in the train step, so the test is
    exact with `steps_per_execution > 1`.

        test = LearningRateFinder().find(model, x, y, batch_size=128)
        model.optimizer.learning_rate = test.suggestion
        test.plot("range_test.png")

    As a callback of `fit` it ends that `fit` after `steps` steps.

    Args:
        low: first rate.
        high: last rate.
        steps: steps of the test, at least 10.
        smoothing: steps that the smoothed loss averages over, about.
        explosion: the test counts as diverged where the smoothed loss has risen by
            this many times its fall and its spread, above 1.

    Raises:
        ConfigError: for arguments out of range, and when training starts with an
            optimizer whose rate is a schedule.

    Example:
        >>> LearningRateFinder(steps=50).get_config()["steps"]
        50

    Source: Smith, "Cyclical Learning Rates" (arXiv:1506.01186), section 3.3. Differs
    from the paper: the rate grows exponentially instead of linearly, and the suggestion
    is the steepest point instead of being read off the plot.
    """

    # It ends the training by the number of steps done.
    async_safe = False

    def __init__(
        self,
        *,
        low: float = 1e-6,
        high: float = 1.0,
        steps: int = 100,
        smoothing: int = 10,
        explosion: float = 4.0,
    ):
        self.low = checks.positive(low, name="low")
        self.high = checks.positive(high, name="high")
        checks.ordered(strict=True, low=self.low, high=self.high)
        self.steps = check_steps(steps, name="steps", least=LEAST_STEPS)
        self.smoothing = check_steps(smoothing, name="smoothing")
        self.explosion = checks.number(explosion, name="explosion", above=1)
        self.result: RangeTest | None = None
        self._snapshot: Snapshot | None = None
        self._slots: list[Any] = []
        super().__init__()

    def make_controller(self) -> Controller:
        """Records the losses and raises the rate."""
        growth = (self.high / self.low) ** (1.0 / (self.steps - 1))
        return _RangeTest(self.steps, growth)

    def set_model(self, model):
        super().set_model(model)
        hub = hub_of(model)
        if hub.rate.kind != "variable":
            hub.detach(self.controller)
            raise ConfigError(
                "LearningRateFinder sets the rate itself and cannot drive an optimizer "
                "whose learning_rate is a schedule. Compile with a float "
                "learning_rate for the test."
            )
        self.result = None

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._slots = hub_of(self.model).slots(self.controller)
        hub_of(self.model).when_ready(self._begin)

    def _begin(self):
        self._snapshot = Snapshot(self.model)
        hub_of(self.model).rate.set(self.low)

    def on_train_batch_end(self, batch, logs=None):
        if float(to_numpy(self._slots[0])) >= self.steps:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        losses = to_numpy(self._slots[1]).astype("float64")
        done = min(int(to_numpy(self._slots[0])), self.steps)
        super().on_train_end(logs)
        if self._snapshot is not None:
            self._snapshot.restore()
        self._snapshot, self._slots = None, []
        growth = (self.high / self.low) ** (1.0 / (self.steps - 1))
        rates = self.low * growth ** np.arange(done)
        self.result = analyse(
            rates, losses[:done], smoothing=self.smoothing, explosion=self.explosion
        )

    def find(self, model: keras.Model, *args: Any, **kwargs: Any) -> RangeTest:
        """Runs the test with the arguments of `fit`; returns what was measured.

        Args:
            model: compiled model; left as it was.
            *args: of `model.fit`: the data.
            **kwargs: of `model.fit`, such as `batch_size`; not `epochs`.

        Raises:
            ModelError: if the data gave no step.
        """
        kwargs = {"verbose": 0, **kwargs, "epochs": self.steps}
        kwargs["callbacks"] = [self, *kwargs.get("callbacks", [])]
        history = getattr(model, "history", None)
        model.fit(*args, **kwargs)
        if history is not None:
            model.history = history
        if self.result is None or len(self.result.losses) == 0:
            raise ModelError(
                "The range test saw no training step. Received arguments of fit: "
                f"{sorted(kwargs)}. Check that the data set is not empty."
            )
        return self.result
