"""PACT: activations clipped at a trained level."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.quantize.layout import check_bits
from keras_dlopt.transforms.quantize.through import SMALLEST_STEP, custom_gradient


@keras.saving.register_keras_serializable("keras_dlopt")
class PACT(Transform):
    """Clips an activation at a trained level and rounds it to 2^bits levels below.

        y = clip(x, 0, a),   x_q = round(y (2^bits - 1) / a) a / (2^bits - 1)
        dL/dx = u where 0 <= x < a, else 0
        dL/da = sum u where x >= a

    and `decay * a^2` is added to the loss, so that a shrinks where it may.

    State: one trained number.

    Args:
        bits: 1 to 16.
        initial: of a.
        decay: weight of a^2 in the loss; the paper uses the kernels' weight decay.

    Raises:
        ConfigError: for bits outside 1..16, an initial level that is not positive, or a
            negative decay.

    Example:
        >>> PACT(bits=2, initial=3.0)
        PACT(bits=2, initial=3.0)

    Source: Choi et al., "PACT: Parameterized Clipping Activation" (arXiv:1805.06085),
    equations 1 to 3.
    """

    kind = "activation"

    def __init__(self, *, bits: int = 4, initial: float = 10.0, decay: float = 2e-4):
        self.bits = check_bits(bits, least=1)
        if not initial > 0 or decay < 0:
            raise ConfigError(
                "PACT needs initial > 0, the level at which activations are clipped, "
                f"and decay >= 0. Received: initial={initial!r}, decay={decay!r}."
            )
        self.initial, self.decay = initial, decay

    def init(self, target, weight):
        return {"level": State(np.array(self.initial, "float32"), trainable=True)}

    def calibrated(self, low: float, high: float, magnitude: float) -> dict:
        """The state after calibration on data of this range."""
        return {"level": np.array(max(high, SMALLEST_STEP), "float32")}

    def apply(self, weight, state, context):
        if self.decay and context.training:
            context.add_loss(self.decay * ops.square(state["level"]))
        rounded = clipped_at(ops.cast(weight, "float32"), state["level"], self.bits)
        return ops.cast(rounded, weight.dtype)


def clipped_at(x: Any, level: Any, bits: int) -> Any:
    """PACT's function of a float32 tensor and a scalar."""
    steps = 2**bits - 1

    def run(x, level):
        level = ops.maximum(level, SMALLEST_STEP)
        scale = level / steps
        below = ops.logical_and(x >= 0, x < level)
        value = ops.round(ops.clip(x, 0.0, level) / scale) * scale

        def gradient(upstream):
            nothing = ops.zeros_like(upstream)
            over = ops.where(x >= level, upstream, nothing)
            return ops.where(below, upstream, nothing), ops.sum(over)

        return value, gradient

    return custom_gradient(run, x, level)
