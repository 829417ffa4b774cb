"""Quantizers of weights: grid x gradient x start x observer."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import Target
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.quantize.gradients import (
    Gradient,
    StraightThrough,
    TrainedGradient,
)
from keras_dlopt.transforms.quantize.grids import (
    IntegerGrid,
    QuantizationGrid,
    codebook,
)
from keras_dlopt.transforms.quantize.layout import (
    ScaleLayout,
    check_granularity,
    layout,
)
from keras_dlopt.transforms.quantize.observers import (
    MinMax,
    MovingAverage,
    Observer,
    observer_of,
)
from keras_dlopt.transforms.quantize.starts import FromRange, GivenRange, ScaleStart


class Rounding(Transform):
    """What quantizers of weights and of activations share.

    Four values that combine, and two steps: when rounding begins, and from when on the
    range stays as it is.
    """

    def __init__(
        self,
        grid: QuantizationGrid,
        gradient: Gradient,
        start: ScaleStart | None,
        observer: str | Observer,
        begin: int,
        freeze: int | None,
    ):
        self.grid: Any = checks.instance(
            grid,
            QuantizationGrid,  # type: ignore[type-abstract]
            name="grid",
        )
        self.gradient: Any = checks.instance(gradient, Gradient, name="gradient")
        self.observer = observer_of(observer)
        self.begin, self.freeze = _checked_steps(begin, freeze)
        self.random = gradient.stochastic
        self.trained = isinstance(gradient, TrainedGradient)
        if start is None and isinstance(gradient, TrainedGradient):
            start = gradient.start
        self.start: Any = checks.optional(
            checks.instance, start, name="start", kind=ScaleStart
        )
        for value in (gradient, start, self.observer):
            if value is not None and not isinstance(grid, value.grids):
                kinds = " or ".join(kind.__name__ for kind in value.grids)
                raise ConfigError(f"{value!r} needs a {kinds}. Received: {grid!r}.")
        self._check_start()
        self._check_range()

    def _check_start(self) -> None:
        """Raises `ConfigError` for a start of nothing, or one that contradicts it."""
        known = isinstance(self.start, GivenRange)
        if self.trained and known and self.start.hold:
            raise ConfigError(
                f"{self.start!r} stays, and {self.gradient!r} trains it. Use one."
            )
        averages = self.kind == "activation" and known
        if not self.trained and self.start is not None and not averages:
            raise ConfigError(
                f"{self.start!r} starts what is trained, and {self.gradient!r} trains "
                "nothing. Leave it out; activations may start at GivenRange(low, high)."
            )

    def _check_range(self) -> None:
        """Raises `ConfigError` for what says how a range moves where there is none."""
        moves = self.grid.spans and not self.trained
        plain = isinstance(self.observer, MinMax | MovingAverage)
        if not moves and self.freeze is not None:
            what = f"freeze={self.freeze}"
        elif not moves and not plain and not isinstance(self.start, FromRange):
            what = repr(self.observer)
        else:
            return
        raise ConfigError(
            f"{what} is for grids that a range places. {self.gradient!r} on "
            f"{self.grid!r} has none: leave it out."
        )

    @property
    def codes(self) -> tuple[int, int]:
        """The smallest and the largest code of an integer grid."""
        return self.grid.limits

    def _flags(self, step: float) -> dict[str, np.ndarray]:
        """Whether rounding is on and the range frozen, as far as that changes."""
        flags = {"on": self.begin or None, "frozen": self.freeze}
        return {
            name: np.array(step >= since, "float32")
            for name, since in flags.items()
            if since is not None
        }

    def _learned(self, x, state, context, axes, count) -> Any:
        """`x` on the levels that trained numbers place."""
        penalty = self.gradient.penalty(state) if context.training else None
        if penalty is not None:
            context.add_loss(penalty)
        return self.gradient.learned(x, state, self.grid, axes, count)

    def next_due(self, step):
        steps = (self.begin or None, self.freeze)
        return min((s for s in steps if s is not None and s > step), default=None)

    def update(self, group, step):
        return [self._flags(step) for _ in group]

    def remaining(self, step):
        what = "rounding" if self.trained else "quantization"
        left = self.begin and step < self.begin
        return f"{what} begins at step {self.begin}" if left else None


def _checked_steps(begin: Any, freeze: Any) -> tuple[int, int | None]:
    """Two steps with 0 <= begin <= freeze, and one to observe in; or `ConfigError`."""
    hint = "Count in training steps (batches)."
    begin = checks.whole(begin, name="begin", least=0, hint=hint)
    hint = f"It comes after begin={begin}, and leaves one step to observe."
    least = max(begin, 1)
    return begin, checks.optional(
        checks.whole, freeze, name="freeze", least=least, hint=hint
    )


def noise_for(x: Any, context: Any) -> Any:
    """Uniform noise in [0, 1) like `x` in training."""
    if not context.training or context.seed is None:
        return None
    return keras.random.uniform(ops.shape(x), seed=context.seed, dtype=x.dtype)


@keras.saving.register_keras_serializable("keras_dlopt")
class Quantizer(Rounding):
    """Rounds a weight to a grid; four values that combine freely say how.

    A **grid** of levels; a **gradient**, what training sends back through the rounding
    and which numbers of the grid it trains; a **start**, where those begin; an
    **observer**, the range that places the levels if nothing is trained. `FakeQuant`,
    `LSQ`, `Binary` and the others are combinations with a name and a paper.

    State: none where the range is that of the weight at every step; two numbers a scale
    for other observers, `begin` or `freeze`; what the gradient trains.

    Args:
        grid: `IntegerGrid(8)`, `MinMaxGrid(4)`, `PowerOfTwoGrid(5)`, `BinaryGrid()`,
            `TernaryGrid()`.
        gradient: `StraightThrough()`, `ThroughScale()`, `LearnedStep()`,
            `LearnedLevel()`, `LearnedLevels()`.
        start: `FromMagnitude()`, `FromRange()`, `FromMeans()`, `GivenRange(low, high)`;
            None for the one of the gradient's paper.
        observer: how the range is chosen: `"min_max"`, `"moving_average"`,
            `"percentile"`, `"mse"`, `"kl"` or an object such as `Percentile(99.9)`.
            The last three are computed between steps.
        per_channel: one scale per output channel; False for one scale a weight (also
            used for weights with fewer than two dimensions).
        axis: the axis that keeps a scale each; None for the output channels.
        group_size: consecutive input channels that share a scale, in each output
            channel; None for all.
        frequency: steps between two ranges that are computed between steps.
        begin: step at which rounding begins; before it the weight passes in float.
        freeze: step from which the range stays; None for never.

    Raises:
        ConfigError: for values that do not fit each other or the weight.

    Example:
        >>> from keras_dlopt.transforms.quantize import FromRange, LearnedStep
        >>> learned = Quantizer(IntegerGrid(4), gradient=LearnedStep(),
        ...                     start=FromRange(), observer="mse")
        >>> learned.codes
        (-7, 7)
    """

    def __init__(
        self,
        grid: QuantizationGrid = IntegerGrid(),  # noqa: B008  frozen, shared safely
        *,
        gradient: Gradient = StraightThrough(),  # noqa: B008
        start: ScaleStart | None = None,
        observer: str | Observer = "min_max",
        per_channel: bool = True,
        axis: int | None = None,
        group_size: int | None = None,
        frequency: int = 100,
        begin: int = 0,
        freeze: int | None = None,
    ):
        super().__init__(grid, gradient, start, observer, begin, freeze)
        self.per_channel, self.axis, self.group_size = check_granularity(
            per_channel, axis, group_size
        )
        self.frequency = checks.count(frequency, name="frequency", hint="Of steps.")

    @property
    def _follows(self) -> bool:
        """Whether the levels are placed by the weight itself, at every step."""
        plain = isinstance(self.observer, MinMax) and self.freeze is None
        return plain or not self.grid.spans

    def _cut(self, target: Target, shape: Any) -> ScaleLayout:
        return layout(
            target,
            tuple(shape),
            per_channel=self.per_channel,
            axis=self.axis,
            group_size=self.group_size,
        )

    def init(self, target, weight):
        cut = self._cut(target, weight.shape)
        states = {name: State(flag) for name, flag in self._flags(-1).items()}
        if self.trained:
            rows = cut.rows(np.asarray(weight, "float32"))
            found = self.start.of_rows(rows, self.observer, self.grid)
            found = self.gradient.begin(*self.start.range(found, self.grid), self.grid)
        elif self._follows:
            return states
        else:
            found = self._found(cut, weight)
        for name, value in found.items():
            value = np.broadcast_to(np.ravel(value), math.prod(cut.scales)).astype(
                "float32"
            )
            states[name] = State(value.reshape(cut.scales), trainable=self.trained)
        return states

    def _found(self, cut: ScaleLayout, weight: np.ndarray) -> dict[str, np.ndarray]:
        """The observer's range of a weight."""
        rows = cut.rows(np.asarray(weight, "float32"))
        ends = self.observer.find(rows, None, self.grid)
        low, high = (e.astype("float32").reshape(cut.scales) for e in ends)
        return {"low": low, "high": high}

    def apply(self, weight, state, context):
        cut = self._cut(context.target, weight.shape)
        w = cut.cut(weight)
        if self.trained:
            rounded = self._learned(w, state, context, cut.reduced, cut.count)
        else:
            how = {"noise": noise_for(w, context)} if self.random else {}
            placed = self._placed(w, cut, state, context)
            rounded = self.gradient.apply(
                w, self.grid, placed, cut.reduced, clips=not self._follows, **how
            )
        rounded = cut.join(rounded)
        return ops.where(state["on"] > 0, rounded, weight) if self.begin else rounded

    def _placed(self, w, cut: ScaleLayout, state, context) -> Any:
        """The numbers that place the levels, in the graph."""
        if self._follows:
            return self.grid.measured(w, cut.reduced, ops)
        low, high = state["low"], state["high"]
        if not self.observer.host:
            low, high = self._moved(w, cut, state, context)
            context.write("low", low)
            context.write("high", high)
        return self.grid.fit(low, high, ops)

    def _moved(self, w, cut: ScaleLayout, state, context) -> tuple[Any, Any]:
        """The range with the weight of this step in it."""
        low, high = self.grid.ends(w, cut.reduced, ops)
        if isinstance(self.observer, MovingAverage):
            keep = self.observer.momentum if context.training else 1.0
            old = state["low"], state["high"]
            low, high = self.observer.moved(old, (low, high), keep)
        if self.freeze is not None:
            frozen = state["frozen"] > 0
            low = ops.where(frozen, state["low"], low)
            high = ops.where(frozen, state["high"], high)
        return low, high

    def next_due(self, step):
        due = super().next_due(step)
        looks = self.observer.host and not self.trained
        if not looks or (self.freeze is not None and step >= self.freeze):
            return due
        again = (step // self.frequency + 1) * self.frequency
        return again if due is None else min(due, again)

    def update(self, group, step):
        changes = super().update(group, step)
        if self.observer.host and not self.trained:
            for member, change in zip(group, changes, strict=True):
                if not float(member.state.get("frozen", 0)) > 0:
                    cut = self._cut(member.target, member.weight.shape)
                    change |= self._found(cut, member.weight)
        return changes

    def _settled(self, cut: ScaleLayout, weight: np.ndarray, state: dict) -> Any:
        """The numbers that place the levels, in NumPy."""
        if self.trained:
            return self.gradient.numbers(state, self.grid, weight, cut.reduced)
        if self._follows:
            return self.grid.measured(weight, cut.reduced)
        return self.grid.fit(state["low"], state["high"])

    def grid_of(
        self, target: Target, weight: np.ndarray, state: dict[str, np.ndarray]
    ) -> tuple[Any, ...]:
        """The numbers that place the levels, each broadcastable to the weight.

        Those of an integer grid are the scale and the smallest and largest code.
        """
        cut = self._cut(target, weight.shape)
        settled = self._settled(cut, weight.reshape(cut.split), state)
        return tuple(cut.broadcast(np.asarray(n, "float32")) for n in settled)

    def scale(self, target: Target, weight: np.ndarray) -> np.ndarray:
        """The step between levels at the start, broadcastable to the weight."""
        state = {k: v.value for k, v in self.init(target, weight).items()}
        return self.grid_of(target, weight, state)[0]

    def finalize(self, target, weight, state):
        if self.begin and not state["on"]:
            return weight, None
        cut = self._cut(target, weight.shape)
        w = np.asarray(weight, "float32").reshape(cut.split)
        settled = self._settled(cut, w, state)
        codes, _ = self.grid.place(w - state.get("offset", 0), settled)
        value, hint = self.grid.described(codes, settled, cut)
        if "offset" in state:
            value, hint = codebook(value + cut.broadcast(state["offset"]), cut)
        return value.astype(weight.dtype), hint
