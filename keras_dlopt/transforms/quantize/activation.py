"""Fake quantization of activations: an asymmetric grid with a moving range."""

import keras
import numpy as np
from keras import ops

from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.quantize.fake_quant import batch_range, fake_quant
from keras_dlopt.transforms.quantize.weight import check_bits


@keras.saving.register_keras_serializable("keras_dlopt")
class FakeQuantActivation(Transform):
    """Rounds a layer's input or output to 2^bits levels between a low and a high end.

    The range is a moving average of each batch's smallest and largest value,

        low  <- momentum * low  + (1 - momentum) * min(min(x), 0)
        high <- momentum * high + (1 - momentum) * max(max(x), 0)

    starting at the first batch's, and is nudged so that 0 is exactly one of the levels.
    Values outside are clipped; the gradient passes inside the range and is zero
    outside. Outside of training the range stays.

    State: three numbers.

    Args:
        bits: 2 to 16; LiteRT wants 8.
        momentum: weight of the old range, in [0, 1).
        range: fixed (low, high), such as (0, 255 / 256) after a sigmoid; None to learn
            it from the data.

    Raises:
        ConfigError: for bits outside 2..16, a momentum outside [0, 1), or a range that
            does not contain 0.

    Example:
        >>> from keras_dlopt import inside, named
        >>> import keras
        >>> entry = (named("output") & inside(keras.layers.ReLU), FakeQuantActivation())

    Source: Jacob et al. (arXiv:1712.05877), section 3.1.
    """

    kind = "activation"

    def __init__(
        self,
        *,
        bits: int = 8,
        momentum: float = 0.95,
        range: tuple[float, float] | None = None,
    ):
        self.bits = check_bits(bits)
        if not 0.0 <= momentum < 1.0:
            raise ConfigError(f"momentum must be in [0, 1). Received: {momentum!r}.")
        if range is not None and not range[0] <= 0 <= range[1] != range[0]:
            raise ConfigError(
                "range must be (low, high) with low <= 0 <= high and low < high, since "
                f"0 must be one of the levels. Received: {range!r}."
            )
        self.momentum = momentum
        self.range = None if range is None else (float(range[0]), float(range[1]))

    def init(self, target, weight):
        low, high = self.range or (0.0, 0.0)
        return {
            "low": State(np.array(low, "float32")),
            "high": State(np.array(high, "float32")),
            "seen": State(np.array(self.range is not None, "float32")),
        }

    def apply(self, weight, state, context):
        low, high, seen = state["low"], state["high"], state["seen"]
        if context.training and self.range is None:
            smallest, largest = batch_range(weight)
            keep = self.momentum * seen
            low = keep * low + (1 - keep) * ops.minimum(smallest, 0.0)
            high = keep * high + (1 - keep) * ops.maximum(largest, 0.0)
            context.write("low", low)
            context.write("high", high)
            context.write("seen", ops.ones_like(seen))
        return fake_quant(weight, low, high, bits=self.bits)
