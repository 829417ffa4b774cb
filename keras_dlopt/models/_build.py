"""Pieces that the networks share: named standard Keras layers, nothing else."""

import keras
from keras import layers

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError


def channel_axis() -> int:
    """The axis of the channels under Keras' global image data format."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def conv(
    x, filters: int, size: int = 3, *, strides: int = 1, name: str, bias: bool = False
):
    """A "same" convolution with He initialisation."""
    return layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="same",
        use_bias=bias,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def norm(x, *, name: str, momentum: float, epsilon: float = 1e-3, zero: bool = False):
    """Batch normalization over channels; `zero` starts its scale at 0."""
    return layers.BatchNormalization(
        axis=channel_axis(),
        momentum=momentum,
        epsilon=epsilon,
        gamma_initializer="zeros" if zero else "ones",
        name=name,
    )(x)


def head(x, classes: int, activation):
    """Global average pooling and the classifier."""
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return layers.Dense(classes, activation=activation, name="classifier")(x)


def pad_shortcut(x, filters: int, *, strides: int, name: str):
    """The identity, subsampled by `strides`, with zeros for the channels it lacks.

    Written in standard layers: a 1x1 max pooling takes every `strides`-th pixel. A
    `ZeroPadding2D` that is told the other data format takes the channel axis for one of
    its two spatial axes, and pads that.
    """
    axis = channel_axis()
    if strides > 1:
        x = layers.MaxPooling2D(1, strides=strides, name=f"{name}_subsample")(x)
    extra = filters - x.shape[axis]
    if extra < 0:
        raise ConfigError(
            f"A pad shortcut cannot drop channels: {x.shape[axis]} come in and "
            f"{filters} go out. Use shortcut='projection'."
        )
    if extra:
        last = axis == -1
        padding = ((0, 0), (0, extra)) if last else ((0, extra), (0, 0))
        swapped = "channels_first" if last else "channels_last"
        x = layers.ZeroPadding2D(padding, data_format=swapped, name=f"{name}_pad")(x)
    return x


def counts(**values: int) -> None:
    """Raises `ConfigError` unless every value is a whole number of at least 1."""
    for name, value in values.items():
        checks.count(value, name=name)
