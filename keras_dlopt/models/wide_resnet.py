"""Wide residual networks."""

import keras
from keras import layers

from keras_dlopt.errors import ConfigError
from keras_dlopt.models import _build


def wide_resnet(
    *,
    depth: int = 16,
    widen: int = 4,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    dropout: float = 0.0,
    activation: str | None = None,
    momentum: float = 0.9,
    name: str | None = None,
) -> keras.Model:
    """WRN-`depth`-`widen`: few, wide blocks with normalization first.

    A 3x3 convolution of 16 filters; three stages of n = (depth - 4) / 6 blocks at 16,
    32 and 64 times `widen` filters; normalization, ReLU, global average pooling and a
    dense layer. A Functional graph of standard Keras layers. WRN-28-10 has 36.5 M
    parameters, WRN-16-8 11.0 M, WRN-40-4 8.9 M.

    Args:
        depth: 10, 16, 22, 28, 40: 6n + 4.
        widen: factor on the filters; 1 is a plain pre-activation ResNet.
        input_shape: `(height, width, channels)`.
        classes: number of outputs.
        dropout: rate between the convolutions of a block, in [0, 1).
        activation: of the last layer; None returns logits.
        momentum: of the moving statistics.
        name: of the model.

    Raises:
        ConfigError: for a depth that is not 6n + 4.

    Example:
        >>> wide_resnet(depth=10, widen=1, input_shape=(8, 8, 1)).output_shape
        (None, 10)

    Source: Zagoruyko and Komodakis, "Wide residual networks" (arXiv:1605.07146),
    table 1.
    """
    _build.counts(depth=depth, widen=widen, classes=classes)
    if depth < 10 or (depth - 4) % 6:
        raise ConfigError(
            f"depth must be 6n + 4 with n >= 1 (10, 16, 22, 28, ...). "
            f"Received: {depth}."
        )
    inputs = keras.Input(input_shape, name="image")
    x = _build.conv(inputs, 16, name="stem_conv")
    for stage in range(3):
        for block in range((depth - 4) // 6):
            x = _block(
                x,
                16 * widen * 2**stage,
                strides=2 if stage and not block else 1,
                dropout=dropout,
                momentum=momentum,
                name=f"stage{stage + 1}_block{block + 1}",
            )
    x = _build.norm(x, name="final_bn", momentum=momentum)
    x = layers.ReLU(name="final_relu")(x)
    outputs = _build.head(x, classes, activation)
    return keras.Model(inputs, outputs, name=name or f"wrn_{depth}_{widen}")


def _block(x, filters, *, strides, dropout, momentum, name):
    y = _build.norm(x, name=f"{name}_bn1", momentum=momentum)
    y = layers.ReLU(name=f"{name}_relu1")(y)
    if strides > 1 or x.shape[_build.channel_axis()] != filters:
        # The projection sees the normalized input, as the authors' code has it.
        x = _build.conv(y, filters, 1, strides=strides, name=f"{name}_short_conv")
    y = _build.conv(y, filters, strides=strides, name=f"{name}_conv1")
    y = _build.norm(y, name=f"{name}_bn2", momentum=momentum)
    y = layers.ReLU(name=f"{name}_relu2")(y)
    if dropout:
        y = layers.Dropout(dropout, name=f"{name}_dropout")(y)
    y = _build.conv(y, filters, name=f"{name}_conv2")
    return layers.Add(name=f"{name}_add")([y, x])
