"""Fake quantization of weights on a grid of integers times a scale."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.codecs.hints import Grid
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import Target
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.quantize import phases
from keras_dlopt.transforms.quantize.grids import IntegerGrid
from keras_dlopt.transforms.quantize.layout import (
    Layout,
    channel_axes,
    check_bits,
    check_granularity,
    layout_of,
)
from keras_dlopt.transforms.quantize.observers import (
    MinMax,
    MovingAverage,
    Observer,
    observer_of,
)
from keras_dlopt.transforms.quantize.through import on_grid

__all__ = ["FakeQuant", "channel_axes", "check_bits", "check_limit", "noise_for"]


def check_limit(clip_gradient: float | None) -> float | None:
    """Returns a bound of gradients, None or positive, or raises `ConfigError`."""
    if clip_gradient is not None and not clip_gradient > 0:
        raise ConfigError(
            "clip_gradient must be a positive bound of each element of the gradient, "
            f"or None. Received: {clip_gradient!r}."
        )
    return clip_gradient


def noise_for(x: Any, context: Any, stochastic: bool) -> Any:
    """Uniform noise in [0, 1) like `x` where rounding is random, else None."""
    if not (stochastic and context.training and context.seed is not None):
        return None
    return keras.random.uniform(ops.shape(x), seed=context.seed, dtype=x.dtype)


@keras.saving.register_keras_serializable("keras_dlopt")
class FakeQuant(Transform):
    """Rounds a weight to a grid of 2^bits integers, straight-through in training.

    By default the grid is symmetric and narrow, with one scale per output channel that
    follows the weight: with q = 2^(bits-1) - 1 and the largest magnitude m,

        scale = m / q,   code = round(w / scale) in [-q, q],   w_q = code * scale

    so no code is ever clipped, the gradient passes unchanged, and zero stays zero. The
    other grids are `IntegerGrid`'s; an observer that leaves values out clips them, and
    their gradient is zero.

    State: none; two numbers a scale with an observer other than `"min_max"`, `begin`
    or `freeze`.

    Args:
        bits: 2 to 16; 1 for the two levels of an asymmetric grid.
        per_channel: one scale per output channel; False for one scale a weight (also
            used for weights with fewer than two dimensions).
        symmetric: whether 0 is the middle of the grid; else the range is from the
            smallest to the largest weight, and 0 one of the levels.
        narrow_range: whether the lowest code is left out, so that a symmetric grid
            has as many levels below 0 as above; None does so for symmetric grids.
        axis: the axis that keeps a scale each; None for the output channels.
        group_size: consecutive input channels that share a scale, in each output
            channel; None for all.
        observer: how the range is chosen: `"min_max"`, `"moving_average"`,
            `"percentile"`, `"mse"`, `"kl"` or an object such as `Percentile(99.9)`.
            The last three are computed between steps.
        frequency: steps between two ranges of those.
        begin: step at which rounding begins; before it the weight passes in float.
        freeze: step from which the range stays; None for never.
        stochastic: whether training rounds up with the probability of the fraction,
            so that the rounded weight is right on average. Inference rounds to the
            nearest.
        clip_gradient: bound of each element of the gradient that reaches the weight.

    Raises:
        ConfigError: for bits, axes or groups that do not fit, and steps out of order.

    Example:
        >>> from keras_dlopt.graph.targets import Target
        >>> w = np.array([[0.5], [-1.0], [0.2]], "float32")
        >>> FakeQuant(bits=2).evaluate(Target("kernel"), w, {}).ravel().tolist()
        [0.0, -1.0, 0.0]

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (arXiv:1712.05877), section 3; per channel as in
    Krishnamoorthi (arXiv:1806.08342), section 3; stochastic rounding from Gupta et al.
    (arXiv:1502.02551), section 3.
    """

    def __init__(
        self,
        *,
        bits: int = 8,
        per_channel: bool = True,
        symmetric: bool = True,
        narrow_range: bool | None = None,
        axis: int | None = None,
        group_size: int | None = None,
        observer: str | Observer = "min_max",
        frequency: int = 100,
        begin: int = 0,
        freeze: int | None = None,
        stochastic: bool = False,
        clip_gradient: float | None = None,
    ):
        self.bits = check_bits(bits, least=2 if symmetric else 1)
        narrow = symmetric if narrow_range is None else narrow_range
        if not symmetric and narrow and bits == 1:
            raise ConfigError("One bit has two levels: narrow_range needs 2 or more.")
        check_granularity(per_channel, axis, group_size)
        phases.check_phases(begin, freeze)
        if not isinstance(frequency, int) or frequency < 1:
            raise ConfigError(
                f"frequency must be at least 1 step. Received: {frequency!r}."
            )
        self.per_channel, self.symmetric = per_channel, symmetric
        self.narrow_range, self.axis, self.group_size = narrow_range, axis, group_size
        self.observer = observer_of(observer)
        self.frequency, self.begin, self.freeze = frequency, begin, freeze
        self.stochastic, self.random = stochastic, stochastic
        self.clip_gradient = check_limit(clip_gradient)
        self.grid = IntegerGrid(bits, symmetric, bool(narrow))

    @property
    def limit(self) -> int:
        """The largest code of a symmetric grid, 2^(bits-1) - 1."""
        return 2 ** (self.bits - 1) - 1

    @property
    def _follows(self) -> bool:
        """Whether the range is that of the weight at every step."""
        plain = isinstance(self.observer, MinMax)
        return plain and self.freeze is None

    def _layout(self, target: Target, shape: Any) -> Layout:
        return layout_of(self, target, shape)

    def init(self, target, weight):
        cut = self._layout(target, weight.shape)
        states = phases.phase_states(self.begin, self.freeze)
        if not self._follows:
            low, high = self._find(cut, weight)
            states |= {"low": State(low), "high": State(high)}
        return states

    def _find(self, cut: Layout, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The observer's range of a weight, in the shape of the scales."""
        rows = cut.rows(np.asarray(weight, "float32"))
        low, high = self.observer.find(rows, None, self.grid)
        shape = cut.scales
        return low.astype("float32").reshape(shape), high.astype("float32").reshape(
            shape
        )

    def apply(self, weight, state, context):
        cut = self._layout(context.target, weight.shape)
        w = cut.cut(weight)
        low, high = self._range(w, cut, state, context)
        scale, lowest, highest = self.grid.fit(low, high, ops)
        rounded = on_grid(
            w,
            scale,
            lowest,
            highest,
            clips=not self._follows,
            noise=noise_for(w, context, self.stochastic),
            clip_gradient=self.clip_gradient,
        )
        rounded = cut.join(rounded)
        return ops.where(state["on"] > 0, rounded, weight) if self.begin else rounded

    def _range(self, w, cut: Layout, state, context):
        if self.observer.host:
            return state["low"], state["high"]
        low, high = _ends(w, cut.reduced, self.symmetric)
        if self._follows:
            return low, high
        if isinstance(self.observer, MovingAverage):
            keep = self.observer.momentum if context.training else 1.0
            low = keep * state["low"] + (1 - keep) * low
            high = keep * state["high"] + (1 - keep) * high
        if self.freeze is not None:
            frozen = state["frozen"] > 0
            low = ops.where(frozen, state["low"], low)
            high = ops.where(frozen, state["high"], high)
        context.write("low", low)
        context.write("high", high)
        return low, high

    def next_due(self, step):
        due = phases.next_phase(self.begin, self.freeze, step)
        if not self.observer.host or (self.freeze is not None and step >= self.freeze):
            return due
        again = (step // self.frequency + 1) * self.frequency
        if self.freeze is not None:
            again = min(again, self.freeze)
        return again if due is None else min(due, again)

    def update(self, group, step):
        changes = []
        for member in group:
            change = phases.flags(self.begin, self.freeze, step)
            frozen = float(member.state.get("frozen", 0)) > 0
            if self.observer.host and not frozen:
                cut = self._layout(member.target, member.weight.shape)
                change["low"], change["high"] = self._find(cut, member.weight)
            changes.append(change)
        return changes

    def remaining(self, step):
        return phases.remaining_phase(self.begin, self.freeze, step)

    def grid_of(
        self, target: Target, weight: np.ndarray, state: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, Any, Any]:
        """Scale and smallest and largest code, each broadcastable to the weight."""
        cut = self._layout(target, weight.shape)
        if self._follows:
            rows = cut.rows(np.asarray(weight, "float32"))
            low = rows.min(axis=1, initial=0).reshape(cut.scales)
            high = rows.max(axis=1, initial=0).reshape(cut.scales)
        else:
            low, high = state["low"], state["high"]
        scale, lowest, highest = self.grid.fit(low, high)
        return (
            cut.broadcast(scale.astype("float32")),
            cut.broadcast(lowest),
            cut.broadcast(highest),
        )

    def scale(self, target: Target, weight: np.ndarray) -> np.ndarray:
        """The step between levels at the start, broadcastable to the weight."""
        state = {k: v.value for k, v in self.init(target, weight).items()}
        return self.grid_of(target, weight, state)[0]

    def finalize(self, target, weight, state):
        if self.begin and not state["on"]:
            return weight, None
        scale, lowest, highest = self.grid_of(target, weight, state)
        codes = np.clip(np.rint(weight / scale), lowest, highest).astype("int32")
        value = (codes * scale).astype(weight.dtype)
        return value, Grid(codes=codes, scale=scale)


def _ends(w: Any, axes: tuple[int, ...], symmetric: bool) -> tuple[Any, Any]:
    """Smallest and largest value around 0; of both signs alike if symmetric."""
    if symmetric:
        largest = ops.max(ops.abs(w), axis=axes, keepdims=True)
        return -largest, largest
    low = ops.min(w, axis=axes, keepdims=True)
    high = ops.max(w, axis=axes, keepdims=True)
    return ops.minimum(low, 0.0), ops.maximum(high, 0.0)
