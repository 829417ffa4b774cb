"""Factors by channel: on a residual body, or with an offset."""

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.config import Configured
from keras_dlopt.layers import _shared
from keras_dlopt.runtime.values import to_numpy


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
        self._axis = axis % len(input_shape)
        self.gamma = self.add_weight(
            name="gamma",
            shape=(input_shape[axis],),
            initializer=keras.initializers.Constant(self.init),
        )

    def call(self, inputs):
        return inputs * ops.reshape(self.gamma, self._shape)

    def as_affine(self):
        """Factor, offset and axis of the channels."""
        return to_numpy(self.gamma), 0.0, self._axis

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

    def as_affine(self):
        """Factor, offset and axis of the channels: all are treated alike."""
        return to_numpy(self.alpha), 0.0, None

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("keras_dlopt")
class ScaleAndShift(Configured, keras.layers.Layer):
    """Multiplies each channel of the last axis and adds to it: how normalizations end.

        y = x * gamma + beta,  gamma = 1 and beta = 0 at first

    In an int8 file it is a depthwise convolution of size 1, exact for each channel.

    Args:
        scale: whether there is a gamma.
        center: whether there is a beta.
        **kwargs: of `keras.layers.Layer`.

    Example:
        >>> ScaleAndShift()(np.ones((1, 2), "float32")).numpy().tolist()
        [[1.0, 1.0]]
    """

    def __init__(self, *, scale: bool = True, center: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.scale = checks.boolean(scale, name=f"{self.name}: scale")
        self.center = checks.boolean(center, name=f"{self.name}: center")

    def build(self, input_shape=None):
        shape = (input_shape[-1],)
        self._rank = len(input_shape)
        if self.scale:
            self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones")
        if self.center:
            self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros")

    def call(self, inputs):
        made = inputs * self.gamma if self.scale else inputs
        return made + self.beta if self.center else made

    def as_affine(self):
        """Factor, offset and axis of the channels."""
        factor = to_numpy(self.gamma) if self.scale else 1.0
        offset = to_numpy(self.beta) if self.center else 0.0
        return factor, offset, self._rank - 1

    def compute_output_shape(self, input_shape):
        return input_shape
