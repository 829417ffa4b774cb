"""A learned step size for weights (LSQ)."""

import math

import keras
import numpy as np
from keras import ops

from keras_dlopt.codecs.hints import Grid
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.quantize.layout import (
    check_bits,
    check_granularity,
    layout_of,
)
from keras_dlopt.transforms.quantize.through import SMALLEST_STEP, learned_step
from keras_dlopt.transforms.quantize.weight import check_limit


@keras.saving.register_keras_serializable("keras_dlopt")
class LSQ(Transform):
    """Rounds a weight to a grid whose step is trained with the weights.

    With Qn = 2^(bits-1) and Qp = 2^(bits-1) - 1:

        code = round(clip(w / s, -Qn, Qp)),   w_q = code * s
        ds = g sum u (round(w / s) - w / s   or  -Qn  or  Qp where clipped)
        g = 1 / sqrt(N Qp) with N the number of weights that share s

    where u is the gradient of w_q. The step starts at s = 2 mean|w| / sqrt(Qp).

    State: one trained number a scale.

    Args:
        bits: 2 to 16.
        per_channel: one step per output channel; False, as in the paper, for one step
            a weight.
        narrow_range: whether to use -Qp in place of -Qn; two bits are then -1, 0, 1.
        axis: the axis that keeps a step each; None for the output channels.
        group_size: consecutive input channels that share a step; None for all.
        clip_gradient: bound of each element of the gradient that comes in.

    Raises:
        ConfigError: for bits outside 2..16, and axes or groups that do not fit.

    Example:
        >>> LSQ(bits=3).codes
        (-4, 3)

    Source: Esser et al., "Learned Step Size Quantization" (arXiv:1902.08153), sections
    2.1 and 2.2.
    Differs from the paper: a step that training pushes below 1e-8 counts as 1e-8.
    """

    def __init__(
        self,
        *,
        bits: int = 4,
        per_channel: bool = False,
        narrow_range: bool = False,
        axis: int | None = None,
        group_size: int | None = None,
        clip_gradient: float | None = None,
    ):
        self.bits = check_bits(bits)
        check_granularity(per_channel, axis, group_size)
        self.per_channel, self.narrow_range = per_channel, narrow_range
        self.axis, self.group_size = axis, group_size
        self.clip_gradient = check_limit(clip_gradient)

    @property
    def codes(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        high = 2 ** (self.bits - 1) - 1
        return (-high if self.narrow_range else -high - 1), high

    def _layout(self, target, shape):
        return layout_of(self, target, shape)

    def init(self, target, weight):
        cut = self._layout(target, weight.shape)
        mean = np.abs(cut.rows(weight)).mean(axis=1).reshape(cut.scales)
        step = 2 * mean / math.sqrt(self.codes[1])
        step = np.maximum(step, SMALLEST_STEP).astype("float32")
        return {"step": State(step, trainable=True)}

    def apply(self, weight, state, context):
        cut = self._layout(context.target, weight.shape)
        low, high = self.codes
        rounded = learned_step(
            cut.cut(weight),
            state["step"],
            ops.zeros_like(state["step"]),
            low,
            high,
            gradient_scale=1 / math.sqrt(cut.count * high),
            clip_gradient=self.clip_gradient,
        )
        return cut.join(rounded)

    def finalize(self, target, weight, state):
        cut = self._layout(target, weight.shape)
        step = np.maximum(state["step"], np.float32(SMALLEST_STEP))
        scale = cut.broadcast(step)
        codes = np.rint(np.clip(weight / scale, *self.codes)).astype("int32")
        return (codes * scale).astype(weight.dtype), Grid(codes=codes, scale=scale)
