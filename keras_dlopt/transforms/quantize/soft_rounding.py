"""Learned rounding: up or down, whichever keeps the layer's output (AdaRound)."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.codecs.hints import Grid
from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.quantize.through import custom_gradient
from keras_dlopt.transforms.quantize.weight import FakeQuant

# The stretch that lets the sigmoid reach 0 and 1.
LOWEST, HIGHEST = -0.1, 1.1


@keras.saving.register_keras_serializable("keras_dlopt")
class SoftRounding(Transform):
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
        >>> SoftRounding(FakeQuant(bits=4), steps=500).grid.bits
        4

    Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization"
    (arXiv:2004.10568), equations 21 to 24.
    """

    def __init__(self, grid: FakeQuant, *, steps: int = 500, strength: float = 0.1):
        if not isinstance(steps, int) or steps < 1 or strength < 0:
            raise ConfigError(
                "SoftRounding needs steps >= 1 and strength >= 0. Received: "
                f"steps={steps!r}, strength={strength!r}."
            )
        self.grid, self.steps, self.strength = grid, steps, strength

    def init(self, target, weight):
        state = {k: v.value for k, v in self.grid.init(target, weight).items()}
        start = self.start(weight, *self.grid.grid_of(target, weight, state))
        return {k: State(v, trainable=k == "v") for k, v in start.items()}

    def start(
        self, weight: np.ndarray, scale: Any, lowest: Any, highest: Any
    ) -> dict[str, np.ndarray]:
        """The state at the start, for a weight and the grid that it goes to."""
        position = np.clip(weight / scale, lowest, highest)
        floor = np.minimum(np.floor(position), highest - 1)
        share = (position - floor - LOWEST) / (HIGHEST - LOWEST)
        share = np.clip(share, 1e-4, 1 - 1e-4)
        state = {
            "v": np.log(share / (1 - share)),
            "floor": floor,
            "free": weight != 0,
            "scale": scale,
            "step": np.zeros(()),
        }
        return {k: np.asarray(v, "float32") for k, v in state.items()}

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
        codes = free * (floor + h)
        value = codes * state["scale"]
        return _without_weight(weight, value)

    def _penalty(self, h, free, step):
        warm = self.steps / 5
        progress = ops.clip((step - warm) / max(self.steps - warm, 1), 0.0, 1.0)
        power = 20.0 - 18.0 * progress
        distance = ops.clip(ops.abs(2 * h - 1), 1e-6, 1.0)
        undecided = ops.sum(free * (1 - ops.power(distance, power)))
        return self.strength * ops.where(step >= warm, undecided, 0.0)

    def codes(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """The integer codes that were decided for."""
        h = 1 / (1 + np.exp(-state["v"].astype("float64")))
        up = h * (HIGHEST - LOWEST) + LOWEST >= 0.5
        return np.rint(state["free"] * (state["floor"] + up)).astype("int32")

    def finalize(self, target, weight, state):
        codes, scale = self.codes(state), state["scale"]
        return (codes * scale).astype(weight.dtype), Grid(codes=codes, scale=scale)


def _without_weight(weight, value):
    """`value`, with a gradient of zero for the weight and its own for `value`."""

    def run(weight, value):
        return value, lambda upstream: (ops.zeros_like(upstream), upstream)

    return custom_gradient(run, weight, value)
