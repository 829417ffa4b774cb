"""Makes the visible layers that blocks are built from."""

import dataclasses
from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.layers._shared import channel_axis, data_format
from keras_dlopt.layers.batch_normalization import BatchNormalization


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """Convolutions and normalizations with common settings.

    Attributes:
        data_format: `"channels_last"` or `"channels_first"`.
        dtype: the dtype policy, or None for Keras' global one.
        momentum: of the moving statistics.
        epsilon: added to the variance.
    """

    data_format: str
    dtype: Any
    momentum: float
    epsilon: float

    @classmethod
    def of(cls, owner: str, kwargs: dict, momentum: float, epsilon: float) -> "Parts":
        """The parts of the block `owner`, from what `Residual` will be given."""
        return cls(
            data_format(owner, kwargs.get("data_format")),
            kwargs.get("dtype"),
            checks.probability(momentum, name=f"{owner}: momentum"),
            checks.positive(epsilon, name=f"{owner}: epsilon"),
        )

    def conv(
        self, filters: int, size: int, *, name: str, strides: int = 1, groups: int = 1
    ) -> keras.layers.Layer:
        """A "same" convolution without bias."""
        return keras.layers.Conv2D(
            filters,
            size,
            strides=strides,
            padding="same",
            groups=groups,
            use_bias=False,
            kernel_initializer="he_normal",
            data_format=self.data_format,
            dtype=self.dtype,
            name=name,
        )

    def depthwise(
        self, size: int, *, name: str, strides: int = 1, bias: bool = False
    ) -> keras.layers.Layer:
        """A "same" depthwise convolution."""
        return keras.layers.DepthwiseConv2D(
            size,
            strides=strides,
            padding="same",
            use_bias=bias,
            depthwise_initializer="he_normal",
            data_format=self.data_format,
            dtype=self.dtype,
            name=name,
        )

    def norm(self, *, name: str, zero: bool = False) -> keras.layers.Layer:
        """Batch normalization; `zero` starts its scale at 0."""
        return BatchNormalization(
            axis=channel_axis(self.data_format),
            momentum=self.momentum,
            epsilon=self.epsilon,
            gamma_initializer="zeros" if zero else "ones",
            dtype=self.dtype,
            name=name,
        )

    def relu(self, *, name: str, top: float | None = None) -> keras.layers.Layer:
        """ReLU, cut at `top`."""
        return keras.layers.ReLU(max_value=top, dtype=self.dtype, name=name)
