"""Squeeze-and-excitation: channels weighted by what the whole image shows."""

from typing import ClassVar

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.config import Configured
from keras_dlopt.layers import _shared


@keras.saving.register_keras_serializable("keras_dlopt")
class SqueezeExcitation(Configured, keras.layers.Layer):
    """Multiplies each channel by a gate computed from the mean of all channels.

        y = x * sigmoid(W2 relu(W1 mean(x) + b1) + b2)

    Args:
        ratio: width of the hidden layer over the number of channels, in (0, 1];
            at least one unit is kept.
        gate: activation that makes the gate; `"sigmoid"` or `"hard_sigmoid"`.
        data_format: `"channels_last"` or `"channels_first"`; None is Keras' global one.
        **kwargs: of `keras.layers.Layer`.

    Raises:
        ConfigError: for a ratio outside (0, 1] or an unknown data format.

    Example:
        >>> SqueezeExcitation(0.5)(np.ones((1, 4, 4, 6), "float32")).shape
        TensorShape([1, 4, 4, 6])

    Source: Hu et al., "Squeeze-and-excitation networks" (arXiv:1709.01507),
    equations 2 to 4.
    """

    encoders: ClassVar = {"gate": keras.activations.serialize}

    def __init__(
        self,
        ratio: float = 0.25,
        *,
        gate: str = "sigmoid",
        data_format: str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.ratio = checks.share(
            ratio,
            name=f"{self.name}: ratio",
            hint="0.25 squeezes 64 channels into 16.",
        )
        self.gate = keras.activations.get(gate)
        self.data_format = _shared.data_format(self.name, data_format)

    def build(self, input_shape=None):
        first = self.data_format == "channels_first"
        channels = input_shape[1 if first else -1]
        hidden = max(1, round(self.ratio * channels))
        policy = self.dtype_policy
        self.reduce = keras.layers.Dense(
            hidden, activation="relu", dtype=policy, name="reduce"
        )
        self.expand = keras.layers.Dense(
            channels, activation=self.gate, dtype=policy, name="expand"
        )
        self.reduce.build((input_shape[0], channels))
        self.expand.build((input_shape[0], hidden))

    def call(self, inputs):
        rank = len(inputs.shape)
        first = self.data_format == "channels_first"
        axes = tuple(range(2, rank)) if first else tuple(range(1, rank - 1))
        gate = self.expand(self.reduce(ops.mean(inputs, axis=axes)))
        for axis in axes:
            gate = ops.expand_dims(gate, axis)
        return inputs * gate

    def compute_output_shape(self, input_shape):
        return input_shape
