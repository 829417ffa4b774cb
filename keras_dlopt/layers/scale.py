"""Scales on the body of a residual block that start at, or near, zero."""

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.config import Configured
from keras_dlopt.layers import _shared


@keras.saving.register_keras_serializable("keras_dlopt")
class LayerScale(Configured, keras.layers.Layer):
    """Multiplies each channel by a trained factor that starts small.

        y = x * gamma,  gamma = init at first

    Args:
        init: first value of every factor, dimensionless; 1e-6 for deep networks.
        data_format: `"channels_last"` or `"channels_first"`; None is Keras' global one.
        **kwargs: of `keras.layers.Layer`.

    Raises:
        ConfigError: for an unknown data format.

    Example:
        >>> LayerScale(0.5)(np.ones((1, 3), "float32")).numpy().tolist()
        [[0.5, 0.5, 0.5]]

    Source: Touvron et al., "Going deeper with image transformers" (arXiv:2103.17239),
    equation 2.
    """

    def __init__(self, init: float = 1e-6, *, data_format: str | None = None, **kwargs):
        super().__init__(**kwargs)
        self.init = checks.number(init, name=f"{self.name}: init")
        self.data_format = _shared.data_format(self.name, data_format)

    def build(self, input_shape=None):
        axis = _shared.channel_axis(self.data_format) if len(input_shape) > 2 else -1
        self._shape = [1] * (len(input_shape) - 1)
        self._shape[axis if axis < 0 else axis - 1] = input_shape[axis]
        self.gamma = self.add_weight(
            name="gamma",
            shape=(input_shape[axis],),
            initializer=keras.initializers.Constant(self.init),
        )

    def call(self, inputs):
        return inputs * ops.reshape(self.gamma, self._shape)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("keras_dlopt")
class ReZero(keras.layers.Layer):
    """Multiplies its input by one trained number that starts at zero.

        y = alpha * x,  alpha = 0 at first

    Args:
        **kwargs: of `keras.layers.Layer`.

    Example:
        >>> ReZero()(np.ones((1, 2), "float32")).numpy().tolist()
        [[0.0, 0.0]]

    Source: Bachlechner et al., "ReZero is all you need" (arXiv:2003.04887), equation 1.
    """

    def build(self, input_shape=None):
        self.alpha = self.add_weight(name="alpha", shape=(), initializer="zeros")

    def call(self, inputs):
        return self.alpha * inputs

    def compute_output_shape(self, input_shape):
        return input_shape
