"""Quantizers of activations: the same values, numbers measured from batches."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.base import State
from keras_dlopt.transforms.quantize.fake_quant import fake_quant
from keras_dlopt.transforms.quantize.gradients import Gradient, StraightThrough
from keras_dlopt.transforms.quantize.grids import IntegerGrid, QuantizationGrid
from keras_dlopt.transforms.quantize.observers import (
    KL,
    MovingAverage,
    Observer,
)
from keras_dlopt.transforms.quantize.quantizer import Rounding, noise_for
from keras_dlopt.transforms.quantize.starts import FromRange, GivenRange, ScaleStart


@keras.saving.register_keras_serializable("keras_dlopt")
class ActivationQuantizer(Rounding):
    """Rounds a layer's input or output to a grid, by values that combine as a weight's.

    Without trained numbers, a moving average of the range that the observer finds in
    each batch places the levels: starting at the first batch's, outside of training at
    rest, and as long as there is none values pass as they are. Trained numbers start at
    the mean of what the batches before `begin` measure, in which values pass too.
    Batches are measured over all replicas.

    State: what the gradient trains, what is measured, and whether it rounds.

    Args:
        grid: see `Quantizer`; one that a range places, `TernaryGrid` does not.
        gradient: see `Quantizer`.
        start: `FromMagnitude()`, `FromRange()` or `GivenRange(low, high)`, which is
            trained from there, averaged like an older batch, or held; None for the one
            of the gradient's paper, or the first batch.
        observer: `"moving_average"`, `"peak_hold"` and `"min_max"` take the ends of
            each batch, `"percentile"` its percentiles, `"mse"` the one of 20 ranges
            with the least squared error. `"min_max"` keeps the widest ever seen,
            `"peak_hold"` narrows slowly from it; the rest is averaged.
        momentum: weight of the old range, in [0, 1); that of a `MovingAverage` or
            `PeakHold` object goes before.
        begin: step at which rounding begins; None for 0, or 1 where a start is measured
            first.
        freeze: step from which the range stays; None for never.

    Raises:
        ConfigError: for values that do not fit each other, and the observer `"kl"`,
            which needs a histogram of all data: `post_training.quantize` has it.

    Example:
        >>> from keras_dlopt.transforms.quantize import LearnedLevel
        >>> clipped = ActivationQuantizer(IntegerGrid(4, symmetric=False),
        ...                               gradient=LearnedLevel(), observer="mse")
        >>> clipped.codes, clipped.begin
        ((0, 15), 1)
    """

    kind = "activation"

    def __init__(
        self,
        grid: QuantizationGrid = IntegerGrid(8, symmetric=False),  # noqa: B008
        *,
        gradient: Gradient = StraightThrough(),  # noqa: B008  frozen, shared safely
        start: ScaleStart | None = None,
        observer: str | Observer = "moving_average",
        momentum: float = 0.95,
        begin: int | None = None,
        freeze: int | None = None,
    ):
        super().__init__(grid, gradient, start, observer, begin or 0, freeze)
        self.momentum = checks.decay(momentum, name="momentum")
        if isinstance(self.observer, MovingAverage):
            if isinstance(observer, str):
                self.observer = type(self.observer)(self.momentum)
            self.momentum = self.observer.momentum
        if isinstance(self.observer, KL):
            raise ConfigError(
                "The observer 'kl' needs a histogram of all data and cannot run in a "
                "training step. Use 'mse' or 'percentile', or calibrate with "
                "post_training.quantize(model, data, observer='kl')."
            )
        if not self.grid.spans:
            raise ConfigError(
                f"{grid!r} is placed by the values themselves, which change with every "
                "batch. For activations use IntegerGrid(2), with codes from -1 to 1."
            )
        if self._measures:
            self.begin = checks.count(
                1 if begin is None else begin,
                name="begin",
                hint="It is a training step; those before it measure the activations.",
            )

    @classmethod
    def from_config(cls, config):
        """Builds the quantizer from its `get_config()`.

        Configs of earlier versions have an observer with another momentum than the one
        that was in use, which stands beside it.
        """
        made = super().from_config(config)
        if isinstance(made.observer, MovingAverage) and "momentum" in config:
            made.momentum = float(config["momentum"])
            made.observer = type(made.observer)(made.momentum)
        return made

    @property
    def _measures(self) -> tuple[str, ...]:
        """What is measured before trained numbers start."""
        return self.start.measures if self.trained else ()

    @property
    def _held(self) -> bool:
        return isinstance(self.start, GivenRange) and self.start.hold

    def init(self, target, weight):
        known = isinstance(self.start, GivenRange)
        low, high = self.start.range({}, self.grid) if known else (0.0, 0.0)
        if self.trained:
            start = self.gradient.begin(low, high, self.grid) if known else {}
            trained = {name: start.get(name, 1.0) for name in self.gradient.trains}
            states = {n: _number(v, trainable=True) for n, v in trained.items()}
            if not known:
                measured = (*self._measures, "seen", "on")
                return states | {name: _number(0) for name in measured}
        else:
            ends = {"low": low, "high": high, "seen": known}
            states = {name: _number(value) for name, value in ends.items()}
        return states | {name: State(flag) for name, flag in self._flags(-1).items()}

    def apply(self, weight, state, context):
        x = ops.cast(weight, "float32")
        axes = tuple(range(len(x.shape)))
        if self.trained:
            if self._measures and context.training:
                self._observe(x, state, context)
            rounded = self._learned(x, state, context, axes, _features(x))
        else:
            rounded = self._rounded(x, state, context, axes)
        rounded = ops.cast(rounded, weight.dtype)
        if not self.trained and not context.training and self.start is None:
            # Before the first batch there is no range to round to.
            rounded = ops.where(state["seen"] > 0, rounded, weight)
        return ops.where(state["on"] > 0, rounded, weight) if self.begin else rounded

    def _observe(self, x, state, context) -> None:
        """Averages what is measured, equally over the batches before `begin`."""
        seen, idle = state["seen"], state["on"] > 0
        found = self.start.of_batch(x, self.observer, self.grid)
        for name, value in found.items():
            mean = (state[name] * seen + value) / (seen + 1)
            if context.before is not None and name in _WIDER:
                mean = _mean_of_union(name, value, state, context.before)
            context.write(name, ops.where(idle, state[name], mean))
        context.write("seen", ops.where(idle, seen, seen + 1))

    def _rounded(self, x, state, context, axes):
        low, high = state["low"], state["high"]
        if context.training and not self._held:
            low, high = self._moved(x, context.before or state)
            if context.before is not None:
                # One range for all that comes in one run: it holds the widest of it.
                low = ops.minimum(low, state["low"])
                high = ops.maximum(high, state["high"])
            context.write("low", low)
            context.write("high", high)
            context.write("seen", ops.ones_like(state["seen"]))
        grid: Any = self.grid
        if isinstance(grid, IntegerGrid) and self.gradient == StraightThrough():
            narrow = grid.leaves_out
            if narrow or not grid.symmetric:
                return fake_quant(x, low, high, bits=grid.bits, narrow_range=narrow)
        numbers = grid.fit(low, high, ops)
        how = {"noise": noise_for(x, context)} if self.random else {}
        return self.gradient.apply(x, grid, numbers, axes, **how)

    def _moved(self, x: Any, state: dict[str, Any]) -> tuple[Any, Any]:
        """The range with this batch in it."""
        old = state["low"], state["high"]
        batch = self._widened(*self.observer.of_batch(x, self.grid), ops)
        low, high = self.observer.moved(old, batch, self.momentum * state["seen"])
        if self.freeze is None:
            return low, high
        frozen = state["frozen"] > 0
        return ops.where(frozen, old[0], low), ops.where(frozen, old[1], high)

    def _widened(self, low: Any, high: Any, xp: Any) -> tuple[Any, Any]:
        """The range with 0 in it, and in its middle on a symmetric grid."""
        low, high = xp.minimum(low, 0.0), xp.maximum(high, 0.0)
        if not getattr(self.grid, "symmetric", False):
            return low, high
        largest = xp.maximum(-low, high)
        return -largest, largest

    def calibrated(self, low: float, high: float, magnitude: float) -> dict:
        """The state after calibration on data of this range and mean magnitude."""
        if self.trained:
            start = FromRange() if isinstance(self.start, GivenRange) else self.start
            measured = {"low": low, "high": high, "magnitude": magnitude}
            state = self._begun(start, measured)
            state |= {"on": 1.0} if self.begin else {}
        elif self._held:
            return {}
        else:
            low, high = self._widened(low, high, np)
            state = {"low": low, "high": high, "seen": 1.0, **self._flags(math.inf)}
        return {k: np.asarray(v, "float32") for k, v in state.items()}

    def _begun(self, start: ScaleStart, measured: dict[str, Any]) -> dict[str, Any]:
        return self.gradient.begin(*start.range(measured, self.grid), self.grid)

    def update(self, group, step):
        if not self._measures:
            return super().update(group, step)
        changes: list[dict[str, Any]] = [{} for _ in group]
        for member, change in zip(group, changes, strict=True):
            if step >= self.begin and not member.state["on"] > 0:
                change |= self._begun(self.start, member.state) | {"on": 1.0}
        return [
            {k: np.asarray(v, "float32") for k, v in change.items()}
            for change in changes
        ]


_WIDER = {"low": ops.minimum, "high": ops.maximum}


def _mean_of_union(name: str, value: Any, state: Any, before: Any) -> Any:
    """The mean of an end over the runs, where each run counts with its widest value."""
    earlier, seen = before["seen"], state["seen"]
    total, now = before[name] * earlier, ops.maximum(seen - earlier, 1)
    widest = _WIDER[name](value, (state[name] * seen - total) / now)
    return (total + widest * (now + 1)) / (seen + 1)


def _number(value: float, *, trainable: bool = False) -> State:
    return State(np.array(value, "float32"), trainable=trainable)


def _features(x: Any) -> Any:
    """How many features one example has: known when traced, or in the graph."""
    sizes = x.shape[1:]
    if all(isinstance(n, int) for n in sizes):
        return max(math.prod(sizes), 1)
    return ops.prod(ops.cast(ops.shape(x)[1:], "float32"))
