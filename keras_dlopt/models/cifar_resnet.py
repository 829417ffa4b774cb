"""Residual networks in the form that the paper used for CIFAR-10."""

from typing import Any

import keras
from keras import layers

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.models import _build

SHORTCUTS = ("pad", "projection", "none")


def resnet(
    *,
    depth: int = 20,
    width: int = 16,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    shortcut: str = "pad",
    activation: str | None = None,
    momentum: float = 0.9,
    zero_init: bool = False,
    name: str | None = None,
) -> keras.Model:
    """A residual network of `depth = 6n + 2` layers for small images.

    A 3x3 convolution of `width` filters; three stages of n blocks at `width`,
    `2 * width` and `4 * width` filters, the second and third starting with stride 2;
    global average pooling; a dense layer. A block is convolution, normalization, ReLU,
    convolution, normalization, plus the shortcut, ReLU:

        x <- relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))

    A plain Functional graph of standard Keras layers, one layer per step, so that
    recipes, structural pruning and exporters see all of it.

    Args:
        depth: 8, 14, 20, 26, ...: weight layers in all.
        width: filters of the first stage; 16 in the paper.
        input_shape: `(height, width, channels)`.
        classes: number of outputs.
        shortcut: where a stage changes the shape: `"pad"` (zeros for new channels, the
            paper's choice for CIFAR, no parameters) or `"projection"` (1x1 convolution
            and normalization). `"none"` leaves all shortcuts out: the plain stack that
            the paper compares with.
        activation: of the last layer; None returns logits.
        momentum: of the moving statistics. Keras' default of 0.99 is too slow for the
            few thousand steps that such networks are often trained for.
        zero_init: start the last normalization of each block at 0, so that each block
            starts as the identity.
        name: of the model.

    Raises:
        ConfigError: for a depth that is not 6n + 2, or an unknown shortcut.

    Example:
        >>> resnet(depth=8, width=8, input_shape=(8, 8, 1)).output_shape
        (None, 10)

    Source: He et al., "Deep residual learning for image recognition"
    (arXiv:1512.03385), section 4.2.
    Differs from the paper: Keras' "same" padding of strided convolutions (at the end
    only); `zero_init` is from Goyal et al. (arXiv:1706.02677), section 5.1.
    """
    _build.counts(depth=depth, width=width, classes=classes)
    checks.choice(shortcut, name="shortcut", choices=SHORTCUTS)
    if depth < 8 or (depth - 2) % 6:
        lower = max(8, (depth - 2) // 6 * 6 + 2)
        raise ConfigError(
            f"depth must be 6n + 2 with n >= 1 (8, 14, 20, ...). Received: {depth}; "
            f"near it are {lower} and {lower + 6}."
        )
    bn: dict[str, Any] = {"momentum": momentum}
    inputs = keras.Input(input_shape, name="image")
    x = _build.conv(inputs, width, name="stem_conv")
    x = _build.norm(x, name="stem_bn", **bn)
    x = layers.ReLU(name="stem_relu")(x)
    for stage in range(3):
        for block in range((depth - 2) // 6):
            x = _basic_block(
                x,
                width * 2**stage,
                strides=2 if stage and not block else 1,
                shortcut=shortcut,
                bn=bn,
                zero=zero_init,
                name=f"stage{stage + 1}_block{block + 1}",
            )
    outputs = _build.head(x, classes, activation)
    return keras.Model(inputs, outputs, name=name or f"resnet{depth}")


def _basic_block(x, filters, *, strides, shortcut, bn, zero, name):
    changes = strides > 1 or x.shape[_build.channel_axis()] != filters
    y = _build.conv(x, filters, strides=strides, name=f"{name}_conv1")
    y = _build.norm(y, name=f"{name}_bn1", **bn)
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = _build.conv(y, filters, name=f"{name}_conv2")
    y = _build.norm(y, name=f"{name}_bn2", zero=zero, **bn)
    if shortcut != "none":
        if changes and shortcut == "projection":
            x = _build.conv(x, filters, 1, strides=strides, name=f"{name}_short_conv")
            x = _build.norm(x, name=f"{name}_short_bn", **bn)
        elif changes:
            x = _build.pad_shortcut(x, filters, strides=strides, name=f"{name}_short")
        y = layers.Add(name=f"{name}_add")([y, x])
    return layers.ReLU(name=f"{name}_relu2")(y)


def resnet20(**kwargs) -> keras.Model:
    """`resnet(depth=20)`: 0.27 M parameters.

    Args:
        **kwargs: as for `resnet`.

    Example:
        >>> resnet20(input_shape=(28, 28, 1)).name
        'resnet20'
    """
    return resnet(depth=20, **kwargs)


def resnet32(**kwargs) -> keras.Model:
    """`resnet(depth=32)`: 0.46 M parameters.

    Args:
        **kwargs: as for `resnet`.

    Example:
        >>> resnet32(width=1, input_shape=(4, 4, 1)).name
        'resnet32'
    """
    return resnet(depth=32, **kwargs)


def resnet56(**kwargs) -> keras.Model:
    """`resnet(depth=56)`: 0.85 M parameters.

    Args:
        **kwargs: as for `resnet`.

    Example:
        >>> resnet56(width=1, input_shape=(4, 4, 1)).name
        'resnet56'
    """
    return resnet(depth=56, **kwargs)


def resnet110(**kwargs) -> keras.Model:
    """`resnet(depth=110)`: 1.7 M parameters.

    Args:
        **kwargs: as for `resnet`.

    Example:
        >>> resnet110(width=1, input_shape=(4, 4, 1)).name
        'resnet110'
    """
    return resnet(depth=110, **kwargs)
