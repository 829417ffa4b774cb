"""Weights held as integer codes, rounded by something cleverer than the nearest."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.codecs.hints import Grid
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.lookup import without_gradient
from keras_dlopt.transforms.quantize.quantizer import Quantizer

# The stretch that lets the sigmoid reach 0 and 1.
LOWEST, HIGHEST = -0.1, 1.1


class _Codes(Transform):
    """State that starts at the grid on which a quantizer would put a weight."""

    grid: Quantizer
    trains: tuple[str, ...] = ()

    def init(self, target, weight):
        state = {k: v.value for k, v in self.grid.init(target, weight).items()}
        start = self.start(weight, *self.grid.grid_of(target, weight, state))
        return {
            k: State(np.asarray(v, "float32"), trainable=k in self.trains)
            for k, v in start.items()
        }

    def start(self, weight, scale, lowest, highest) -> dict[str, Any]:
        """The state at the start, for a weight and the grid that it goes to."""
        raise TypeError(f"{type(self).__name__} does not define start().")

    def codes(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """The integer codes that were decided for."""
        return np.rint(state["codes"]).astype("int32")

    def finalize(self, target, weight, state):
        codes, scale = self.codes(state), state["scale"]
        return (codes * scale).astype(weight.dtype), Grid(codes=codes, scale=scale)


@keras.saving.register_keras_serializable("keras_dlopt")
class IntegerCodes(_Codes):
    """Replaces a weight by codes times scales that are part of the state.

        w_q = code * scale

    The codes start as the nearest ones on `grid`. Whoever finds better ones, such as
    `post_training.adaround`, writes them into the state. The latent weight gets no
    gradient: the rest of the model can be trained around it.

    State: one float32 a weight for its code, one a scale.

    Args:
        grid: how the weight is cut and which range each scale spans.

    Example:
        >>> from keras_dlopt import FakeQuant
        >>> IntegerCodes(FakeQuant(bits=4)).grid.bits
        4
    """

    fixed_from = 0

    def __init__(self, grid: Quantizer):
        self.grid = grid

    def start(self, weight, scale, lowest, highest):
        codes = np.clip(np.rint(weight / scale), lowest, highest)
        return {"codes": codes, "scale": scale}

    def apply(self, weight, state, context):
        # A gradient of zero, not none: optimizers warn of variables without one.
        return without_gradient(weight, state["codes"] * state["scale"])


@keras.saving.register_keras_serializable("keras_dlopt")
class SoftRounding(_Codes):
    """Learns for each weight whether to round it up or down; the weight itself stays.

        h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)
        w_q = clip(floor(w / s) + h(v), low, high) * s
        loss += strength * sum(1 - |2 h(v) - 1|^b)

    with v trained, starting where h(v) is the fraction of w / s. b falls from 20 to 2
    over `steps` training steps, after a fifth of them without the term. Outside of
    training h is rounded. Weights that are 0 stay 0.

    State: three float32 a weight, one of them trained; one a scale, one for the step.

    Args:
        grid: how the weight is cut and which range each scale spans.
        steps: training steps until every weight has decided.
        strength: weight of the term that makes them decide.

    Raises:
        ConfigError: for a number of steps below 1 or a negative strength.

    Example:
        >>> from keras_dlopt import FakeQuant
        >>> SoftRounding(FakeQuant(bits=4), steps=500).grid.bits
        4

    Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization"
    (arXiv:2004.10568), equations 21 to 24.
    """

    trains = ("v",)

    def __init__(self, grid: Quantizer, *, steps: int = 500, strength: float = 0.1):
        self.grid = grid
        self.steps = checks.count(steps, name="steps")
        self.strength = checks.rate(strength, name="strength")

    def start(self, weight, scale, lowest, highest):
        position = np.clip(weight / scale, lowest, highest)
        floor = np.minimum(np.floor(position), highest - 1)
        share = (position - floor - LOWEST) / (HIGHEST - LOWEST)
        share = np.clip(share, 1e-4, 1 - 1e-4)
        return {
            "v": np.log(share / (1 - share)),
            "floor": floor,
            "free": weight != 0,
            "scale": scale,
            "step": np.zeros(()),
        }

    def apply(self, weight, state, context):
        h = ops.sigmoid(state["v"]) * (HIGHEST - LOWEST) + LOWEST
        h = ops.clip(h, 0.0, 1.0)
        floor, free = state["floor"], state["free"]
        if context.training:
            context.add_loss(self._penalty(h, free, state["step"]))
            context.write("step", state["step"] + 1)
        else:
            h = ops.cast(h >= 0.5, "float32")
        # A weight of 0 has the floor 0 or, at the upper end, one below.
        return without_gradient(weight, free * (floor + h) * state["scale"])

    def _penalty(self, h, free, step):
        warm = self.steps / 5
        progress = ops.clip((step - warm) / max(self.steps - warm, 1), 0.0, 1.0)
        power = 20.0 - 18.0 * progress
        distance = ops.clip(ops.abs(2 * h - 1), 1e-6, 1.0)
        undecided = ops.sum(free * (1 - ops.power(distance, power)))
        return self.strength * ops.where(step >= warm, undecided, 0.0)

    def codes(self, state):
        h = 1 / (1 + np.exp(-state["v"].astype("float64")))
        up = h * (HIGHEST - LOWEST) + LOWEST >= 0.5
        return np.rint(state["free"] * (state["floor"] + up)).astype("int32")
