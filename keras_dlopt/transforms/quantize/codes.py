"""A weight held as integer codes, rounded by something cleverer than the nearest."""

import keras
import numpy as np
from keras import ops

from keras_dlopt.codecs.hints import Grid
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.quantize.through import custom_gradient
from keras_dlopt.transforms.quantize.weight import FakeQuant


@keras.saving.register_keras_serializable("keras_dlopt")
class IntegerCodes(Transform):
    """Replaces a weight by codes times scales that are part of the state.

        w_q = code * scale

    The codes start as the nearest ones on `grid`. Whoever finds better ones, such as
    `post_training.adaround`, writes them into the state. The latent weight gets no
    gradient: the rest of the model can be trained around it.

    State: one float32 a weight for its code, one a scale.

    Args:
        grid: how the weight is cut and which range each scale spans.

    Example:
        >>> IntegerCodes(FakeQuant(bits=4)).grid.bits
        4
    """

    fixed_from = 0

    def __init__(self, grid: FakeQuant):
        self.grid = grid

    def init(self, target, weight):
        state = {k: v.value for k, v in self.grid.init(target, weight).items()}
        scale, lowest, highest = self.grid.grid_of(target, weight, state)
        codes = np.clip(np.rint(weight / scale), lowest, highest)
        return {
            "codes": State(codes.astype("float32")),
            "scale": State(np.asarray(scale, "float32")),
        }

    def apply(self, weight, state, context):
        value = state["codes"] * state["scale"]
        # A gradient of zero, not none: optimizers warn of variables without one.
        return custom_gradient(lambda w: (value, ops.zeros_like), weight)

    def finalize(self, target, weight, state):
        codes, scale = np.rint(state["codes"]).astype("int32"), state["scale"]
        return (codes * scale).astype(weight.dtype), Grid(codes=codes, scale=scale)
