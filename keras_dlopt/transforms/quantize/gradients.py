"""Gradients: what training sends back through a rounding, and what it learns there.

A gradient is a small frozen value. Each writes the forward formula with its backward
formula beside it; `grid.place` and `grid.values` are the forward formula.
"""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.config import Value, frozen
from keras_dlopt.transforms.quantize.grids import (
    BinaryGrid,
    IntegerGrid,
    QuantizationGrid,
    TernaryGrid,
)
from keras_dlopt.transforms.quantize.starts import (
    FromMagnitude,
    FromMeans,
    FromRange,
    ScaleStart,
)

# A learned step may be driven through zero; from here on it counts as this.
SMALLEST_STEP = 1e-8


def custom_gradient(function: Callable[..., Any], *tensors: Any) -> Any:
    """Calls `function`, which returns a value and its gradient function, on tensors.

    The gradient function takes the gradient of the value and returns one for each of
    `tensors`, or for the only one.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Outside of a graph a weight arrives as a variable, which a custom gradient
        # may not take; on a tensor this does nothing.
        tensors = tuple(tf.convert_to_tensor(t) for t in tensors)

    @ops.custom_gradient
    def run(*tensors):
        value, gradient = function(*tensors)

        def grad(*args, upstream=None):
            return gradient(args[0] if upstream is None else upstream)

        return value, grad

    return run(*tensors)


def sum_to(x: Any, like: Any) -> Any:
    """`x` summed over the axes that were broadcast from the shape of `like`."""
    lead = len(x.shape) - len(like.shape)
    axes = [*range(lead)]
    axes += [
        i + lead
        for i, size in enumerate(like.shape)
        if size == 1 and x.shape[i + lead] != 1
    ]
    summed = ops.sum(x, axis=tuple(axes), keepdims=True) if axes else x
    return ops.reshape(summed, like.shape)


@frozen(kw_only=True)
class Gradient(Value, abc.ABC):
    """How a rounding is differentiated; u is the gradient of what was rounded.

    Args:
        clip_gradient: bound of each element of u; None for no bound.

    Raises:
        ConfigError: for a bound that is not positive.
    """

    clip_gradient: float | None = None

    #: The kinds of grid that it is defined on.
    grids: ClassVar[tuple[type[QuantizationGrid], ...]] = (QuantizationGrid,)
    stochastic = False

    def __post_init__(self):
        hint = "It bounds each element of the gradient."
        limit = self.clip_gradient
        limit = checks.optional(checks.positive, limit, name="clip_gradient", hint=hint)
        self.keep(clip_gradient=limit)

    def limited(self, upstream: Any) -> Any:
        """u, each element in its bound."""
        limit = self.clip_gradient
        return upstream if limit is None else ops.clip(upstream, -limit, limit)

    def apply(
        self, x: Any, grid: Any, numbers: Any, axes: tuple[int, ...], **how: Any
    ) -> Any:
        """`x` on a grid whose numbers are given and get no gradient.

        Args:
            x: float tensor.
            grid: the levels.
            numbers: of `grid.fit` or `grid.measured`.
            axes: that share each of the numbers.
            **how: for `grid.place`.
        """
        numbers = tuple(ops.stop_gradient(n) for n in numbers)

        def run(x):
            codes, inside = grid.place(x, numbers, ops, **how)
            value = grid.values(codes, numbers, ops)

            def gradient(upstream):
                return self.backward(upstream, x, codes, inside, numbers, axes)

            return value, gradient

        return custom_gradient(run, x)

    def backward(self, upstream, x, codes, inside, numbers, axes) -> Any:
        """The gradient of `x`."""
        upstream = self.limited(upstream)
        return upstream if inside is None else _where(inside, upstream)


def _where(inside: Any, upstream: Any) -> Any:
    return ops.where(inside, upstream, ops.zeros_like(upstream))


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen(kw_only=True)
class StraightThrough(Gradient):
    """u passes as if nothing were rounded, but where a value was clipped: there 0.

    Args:
        clip_gradient: bound of each element of u; None for no bound.
        stochastic: whether training rounds up with the probability of the fraction, so
            that what is rounded is right on average; on integer grids.

    Source: Bengio et al. (arXiv:1308.3432), section 4; stochastic rounding from Gupta
    et al. (arXiv:1502.02551), section 3.
    """

    stochastic: bool = False

    @property
    def grids(self):  # type: ignore[override]
        """The kinds of grid that it is defined on."""
        return (IntegerGrid,) if self.stochastic else (QuantizationGrid,)


@keras.saving.register_keras_serializable("keras_dlopt")
class ThroughScale(Gradient):
    """The derivative of the scale times that of the codes.

    With the code c, a the mean of |x| over the n values of which c is not 0:

        dL/dx = (1/n sum u c) c + a u where |x| <= 1, else the first term

    Args:
        clip_gradient: bound of each element of dL/dx; None for no bound.

    Source: Rastegari et al., "XNOR-Net" (arXiv:1603.05279), section 3.1; the sign's
    gradient from Courbariaux et al. (arXiv:1602.02830), equation 4.
    Differs from the paper: the first term is exact; the paper writes 1/n u.
    """

    grids = (BinaryGrid, TernaryGrid)

    def backward(self, upstream, x, codes, inside, numbers, axes):
        count = ops.sum(ops.abs(codes), axis=axes, keepdims=True)
        along = ops.sum(upstream * codes, axis=axes, keepdims=True)
        through = along / ops.maximum(count, 1.0) * codes
        near = ops.cast(ops.abs(x) <= 1, upstream.dtype)
        return self.limited(through + numbers[-1] * upstream * near)


class TrainedGradient(Gradient):
    """A gradient that reaches a few trained numbers, which place the levels.

    Attributes:
        trains: their names.
        start: where they begin if nobody says.
    """

    grids: ClassVar[tuple[type[QuantizationGrid], ...]] = (IntegerGrid,)
    trains: tuple[str, ...] = ()
    start: ScaleStart

    @abc.abstractmethod
    def begin(self, low: Any, high: Any, grid: Any) -> dict[str, Any]:
        """The numbers that place the levels in a range, in NumPy."""

    @abc.abstractmethod
    def numbers(self, state: dict[str, Any], grid: Any, x: Any, axes: Any) -> Any:
        """The trained numbers as `grid.place` takes them, in NumPy."""

    def penalty(self, state: dict[str, Any]) -> Any:
        """What it adds to the loss in training, None for nothing."""
        return None

    @abc.abstractmethod
    def learned(
        self, x: Any, state: dict[str, Any], grid: Any, axes: Any, count: Any
    ) -> Any:
        """`x` on the levels that the trained numbers place.

        Args:
            x: float tensor.
            state: the trained numbers, broadcastable to `x`.
            grid: the levels.
            axes: that share each of the numbers.
            count: how many values share them, in one example.
        """


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen(kw_only=True)
class LearnedStep(TrainedGradient):
    """Trains the step s of a grid, and the value of its code 0 if `offset`.

    With v = (x - offset) / s, the codes low..high and g = 1 / sqrt(count high):

        x_q = round(clip(v, low, high)) s + offset
        dL/dx      = u          where low < v < high, else 0
        dL/ds      = g sum u (round(v) - v)   where low < v < high,
                     g sum u low  or  high    where v is clipped
        dL/doffset = g sum u    where v is clipped

    A step below 1e-8 counts as 1e-8.

    Args:
        clip_gradient: bound of each element of u; None for no bound.
        offset: whether the code 0 has a trained value too; else it is 0.

    Source: Esser et al., "Learned Step Size Quantization" (arXiv:1902.08153), equations
    1 to 5; the offset from Bhalgat et al., "LSQ+" (arXiv:2004.09576), equations 4 to 7.
    """

    offset: bool = False

    @property
    def trains(self):  # type: ignore[override]
        """The names of the trained numbers."""
        return ("step", "offset") if self.offset else ("step",)

    @property
    def start(self):  # type: ignore[override]
        """Where they begin if nobody says."""
        return FromRange() if self.offset else FromMagnitude()

    def begin(self, low, high, grid):
        lowest, highest = grid.limits
        if self.offset:
            step = np.maximum((high - low) / (highest - lowest), SMALLEST_STEP)
            return {"step": step, "offset": low - lowest * step}
        step = np.maximum(high / highest, low / lowest if lowest else 0.0)
        return {"step": np.maximum(step, SMALLEST_STEP)}

    def numbers(self, state, grid, x, axes):
        return np.maximum(state["step"], np.float32(SMALLEST_STEP)), *grid.limits

    def learned(self, x, state, grid, axes, count):
        low, high = grid.limits
        root = math.sqrt if isinstance(count, int) else ops.sqrt
        factor = 1 / root(count * high)

        def run(x, scale, *offset):
            step = ops.where(scale > SMALLEST_STEP, scale, SMALLEST_STEP)
            steps = (x - offset[0] if offset else x) / step
            inside = ops.logical_and(steps > low, steps < high)
            codes = ops.round(ops.clip(steps, low, high))
            value = codes * step + offset[0] if offset else codes * step

            def gradient(upstream):
                upstream = self.limited(upstream)
                for_step = upstream * ops.where(inside, codes - steps, codes)
                found = _where(inside, upstream), sum_to(for_step, scale) * factor
                if not offset:
                    return found
                clipped = ops.where(inside, ops.zeros_like(upstream), upstream)
                return *found, sum_to(clipped, offset[0]) * factor

            return value, gradient

        return custom_gradient(run, x, *(state[name] for name in self.trains))


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen(kw_only=True)
class LearnedLevel(TrainedGradient):
    """Trains the level a at which values are clipped, the largest of the grid.

    With the codes low..high and b = a low / high, 0 on an asymmetric grid:

        x_q = round(clip(x, b, a) high / a) a / high
        dL/dx = u where b <= x < a, else 0
        dL/da = sum u where x >= a, plus low / high sum u where x < b

    and `decay * a^2` is added to the loss, so that a shrinks where it may.

    Args:
        clip_gradient: bound of each element of u; None for no bound.
        decay: weight of a^2 in the loss, at least 0.

    Source: Choi et al., "PACT: Parameterized Clipping Activation" (arXiv:1805.06085),
    equations 1 to 3.
    """

    decay: float = 0.0

    trains = ("level",)
    start = FromRange()

    def __post_init__(self):
        super().__post_init__()
        self.keep(decay=checks.rate(self.decay, name="decay"))

    def penalty(self, state):
        return self.decay * ops.sum(ops.square(state["level"])) if self.decay else None

    def begin(self, low, high, grid):
        return {"level": np.maximum(high, SMALLEST_STEP)}

    def numbers(self, state, grid, x, axes):
        lowest, highest = grid.limits
        level = np.maximum(state["level"], np.float32(SMALLEST_STEP))
        return level / highest, lowest, highest

    def learned(self, x, state, grid, axes, count):
        lowest, highest = grid.limits

        def run(x, given):
            level = ops.maximum(given, SMALLEST_STEP)
            scale = level / highest
            bottom = lowest * scale
            inside = ops.logical_and(x >= bottom, x < level)
            value = ops.round(ops.clip(x, bottom, level) / scale) * scale

            def gradient(upstream):
                upstream = self.limited(upstream)
                over = _where(x >= level, upstream)
                if lowest:
                    over += lowest / highest * _where(x < bottom, upstream)
                return _where(inside, upstream), sum_to(over, given)

            return value, gradient

        return custom_gradient(run, x, state["level"])


@keras.saving.register_keras_serializable("keras_dlopt")
class LearnedLevels(TrainedGradient):
    """Trains the two levels -n and p of a ternary grid.

        dL/dp = sum of u where x > d,   dL/dn = -sum of u where x < -d
        dL/dx = p u,  n u  or  u in the three regions

    Args:
        clip_gradient: bound of each element of dL/dx; None for no bound.

    Source: Zhu et al., "Trained Ternary Quantization" (arXiv:1612.01064), equations 6
    to 8.
    """

    grids = (TernaryGrid,)
    trains = ("positive", "negative")
    start = FromMeans()

    def begin(self, low, high, grid):
        return {"positive": high, "negative": -low}

    def numbers(self, state, grid, x, axes):
        return grid.limit(x, axes), state["positive"], state["negative"]

    def learned(self, x, state, grid, axes, count):
        def run(x, positive, negative):
            codes, _ = grid.place(x, (grid.limit(x, axes, ops),), ops)
            above, below = ops.relu(codes), ops.relu(-codes)
            value = positive * above - negative * below

            def gradient(upstream):
                factor = positive * above + negative * below + (1 - above - below)
                return (
                    self.limited(upstream * factor),
                    sum_to(upstream * above, positive),
                    -sum_to(upstream * below, negative),
                )

            return value, gradient

        return custom_gradient(run, x, state["positive"], state["negative"])
