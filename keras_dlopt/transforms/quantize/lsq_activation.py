"""Learned step sizes for activations: LSQ, and LSQ+ with a learned offset."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.quantize.fake_quant import batch_range, replica_mean
from keras_dlopt.transforms.quantize.layout import check_bits
from keras_dlopt.transforms.quantize.through import SMALLEST_STEP, learned_step
from keras_dlopt.transforms.quantize.weight import check_limit


class LearnedActivation(Transform):
    """What the trained activation quantizers share: a start taken from the data.

    Until step `begin` the activation passes as it is and is measured; then the trained
    numbers are set from the measurements, and rounding begins.
    """

    kind = "activation"
    begin: int

    def next_due(self, step):
        return self.begin if step < self.begin else None

    def remaining(self, step):
        return None if step >= self.begin else f"rounding begins at step {self.begin}"

    def start(self, measured: dict[str, Any]) -> dict[str, Any]:
        """The trained numbers at the start."""
        raise TypeError(f"{type(self).__name__} does not define start().")

    def calibrated(self, low: float, high: float, magnitude: float) -> dict:
        """The state after calibration on data of this range and mean magnitude."""
        state = self.start({"low": low, "high": high, "magnitude": magnitude})
        state |= {"on": 1.0}
        return {k: np.asarray(v, "float32") for k, v in state.items()}

    def update(self, group, step):
        if step < self.begin:
            return [{} for _ in group]
        changes = []
        for member in group:
            begun = member.state["on"] > 0
            start = {} if begun else self.start(member.state) | {"on": 1.0}
            changes.append({k: np.asarray(v, "float32") for k, v in start.items()})
        return changes

    def _check_begin(self, begin: int) -> int:
        if not isinstance(begin, int) or begin < 1:
            raise ConfigError(
                "begin must be a training step of at least 1: the steps before it "
                f"measure the activations. Received: {begin!r}."
            )
        return begin

    def _observe(self, context: Any, state: dict[str, Any], **now: Any) -> None:
        """Averages what is measured, equally over the batches before `begin`."""
        if not context.training:
            return
        seen, idle = state["seen"], state["on"] > 0
        for name, value in now.items():
            mean = (state[name] * seen + value) / (seen + 1)
            context.write(name, ops.where(idle, state[name], mean))
        context.write("seen", ops.where(idle, seen, seen + 1))


def _numbers(trained: tuple[str, ...], measured: tuple[str, ...]) -> dict[str, State]:
    ones, zero = np.ones((), "float32"), np.zeros((), "float32")
    return {
        **{name: State(ones, trainable=True) for name in trained},
        **{name: State(zero) for name in (*measured, "seen", "on")},
    }


@keras.saving.register_keras_serializable("keras_dlopt")
class LSQActivation(LearnedActivation):
    """Rounds a layer's input or output to a grid whose step is trained.

    As `LSQ`, for activations: codes from 0 to 2^bits - 1, or from -2^(bits-1) to
    2^(bits-1) - 1 if signed; g = 1 / sqrt(N Qp) with N the features of one example. The
    step starts at 2 mean|x| / sqrt(Qp), the mean taken over the batches before `begin`,
    in which the activation passes in float.

    State: four numbers, one of them trained.

    Args:
        bits: 1 to 16; signed from 2.
        signed: whether the activation has negative values; False after a ReLU.
        begin: step at which rounding begins, at least 1.
        clip_gradient: bound of each element of the gradient that comes in.

    Raises:
        ConfigError: for bits outside their range or a `begin` below 1.

    Example:
        >>> LSQActivation(bits=2).codes
        (0, 3)

    Source: Esser et al., "Learned Step Size Quantization" (arXiv:1902.08153), sections
    2.1 and 2.2.
    """

    def __init__(
        self,
        *,
        bits: int = 4,
        signed: bool = False,
        begin: int = 1,
        clip_gradient: float | None = None,
    ):
        self.bits = check_bits(bits, least=2 if signed else 1)
        self.signed = signed
        self.begin = self._check_begin(begin)
        self.clip_gradient = check_limit(clip_gradient)

    @property
    def codes(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        if self.signed:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    def init(self, target, weight):
        return _numbers(("step",), ("magnitude",))

    def start(self, measured):
        step = 2 * measured["magnitude"] / math.sqrt(self.codes[1])
        return {"step": np.maximum(step, SMALLEST_STEP)}

    def apply(self, weight, state, context):
        x = ops.cast(weight, "float32")
        magnitude = ops.mean(ops.abs(ops.stop_gradient(x)))
        self._observe(context, state, magnitude=replica_mean(magnitude))
        low, high = self.codes
        rounded = learned_step(
            x,
            state["step"],
            ops.zeros_like(state["step"]),
            low,
            high,
            gradient_scale=_per_features(x, high),
            clip_gradient=self.clip_gradient,
        )
        rounded = ops.cast(rounded, weight.dtype)
        return ops.where(state["on"] > 0, rounded, weight)


@keras.saving.register_keras_serializable("keras_dlopt")
class LSQPlusActivation(LearnedActivation):
    """Rounds a layer's input or output to a grid whose step and offset are trained.

    For activations with a small negative part (swish, leaky ReLU): with the codes 0 to
    Q = 2^bits - 1,

        x_q = round(clip((x - offset) / s, 0, Q)) * s + offset

    The range starts at the mean of each batch's ends before `begin`: offset = low,
    s = (high - low) / Q. Zero need not be a level.

    State: six numbers, two of them trained.

    Args:
        bits: 1 to 16.
        begin: step at which rounding begins, at least 1.
        clip_gradient: bound of each element of the gradient that comes in.

    Raises:
        ConfigError: for bits outside 1..16 or a `begin` below 1.

    Example:
        >>> LSQPlusActivation(bits=4).start({"low": -0.5, "high": 2.5})
        {'step': 0.2, 'offset': -0.5}

    Source: Bhalgat et al., "LSQ+" (arXiv:2004.09576), equations 3 to 7.
    Differs from the paper: starts at the ends of the range, not at the smallest error.
    """

    def __init__(
        self,
        *,
        bits: int = 4,
        begin: int = 1,
        clip_gradient: float | None = None,
    ):
        self.bits = check_bits(bits, least=1)
        self.begin = self._check_begin(begin)
        self.clip_gradient = check_limit(clip_gradient)

    def init(self, target, weight):
        return _numbers(("step", "offset"), ("low", "high"))

    def start(self, measured):
        low, high = measured["low"], measured["high"]
        step = (high - low) / (2**self.bits - 1)
        return {"step": max(step, SMALLEST_STEP), "offset": low}

    def apply(self, weight, state, context):
        x = ops.cast(weight, "float32")
        low, high = batch_range(x)
        self._observe(context, state, low=ops.minimum(low, 0.0), high=high)
        top = 2**self.bits - 1
        rounded = learned_step(
            x,
            state["step"],
            state["offset"],
            0,
            top,
            gradient_scale=_per_features(x, top),
            clip_gradient=self.clip_gradient,
        )
        rounded = ops.cast(rounded, weight.dtype)
        return ops.where(state["on"] > 0, rounded, weight)


def _per_features(x: Any, high: int) -> Any:
    """1 / sqrt(N Qp) with N the features of one example."""
    sizes = x.shape[1:]
    if all(isinstance(n, int) for n in sizes):
        return 1 / math.sqrt(max(math.prod(sizes), 1) * high)
    features = ops.prod(ops.cast(ops.shape(x)[1:], "float32"))
    return 1 / ops.sqrt(features * high)
