"""Residual networks for large images: ResNet-18, -34 and -50."""

import keras
from keras import layers

from keras_dlopt.models import _build

# Keras' own ResNets: the smallest epsilon of cuDNN, and a momentum of 0.99.
EPSILON, MOMENTUM = 1.001e-5, 0.99


def resnet18(**kwargs) -> keras.Model:
    """ResNet-18: basic blocks, 2 per stage; 11,689,512 trainable parameters.

    Args:
        **kwargs: `input_shape`, `classes`, `activation`, `conv_bias`, `width` and
            `name`, as for `resnet50`.

    Example:
        >>> resnet18(input_shape=(32, 32, 3), classes=10, width=2).output_shape
        (None, 10)

    Source: He et al. (arXiv:1512.03385), table 1.
    """
    return _network("resnet18", (2, 2, 2, 2), _basic_block, **kwargs)


def resnet34(**kwargs) -> keras.Model:
    """ResNet-34: basic blocks, 3, 4, 6, 3 per stage; 21,797,672 trainable parameters.

    Args:
        **kwargs: `input_shape`, `classes`, `activation`, `conv_bias`, `width` and
            `name`, as for `resnet50`.

    Example:
        >>> resnet34(input_shape=(32, 32, 3), classes=10, width=2).output_shape
        (None, 10)

    Source: He et al. (arXiv:1512.03385), table 1.
    """
    return _network("resnet34", (3, 4, 6, 3), _basic_block, **kwargs)


def resnet50(
    *,
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    activation: str | None = None,
    conv_bias: bool = False,
    width: int = 64,
    name: str = "resnet50",
) -> keras.Model:
    """ResNet-50: bottleneck blocks, 3, 4, 6, 3 per stage.

    25,557,032 trainable parameters; with `conv_bias=True` 25,636,712 in all, and then
    layer names and numbers are those of `keras.applications.ResNet50`, whose weights
    can be loaded by name.

    Args:
        input_shape: `(height, width, channels)`; sizes may be None.
        classes: number of outputs.
        activation: of the last layer; None returns logits.
        conv_bias: give convolutions a bias, which the normalization after each makes
            superfluous.
        width: filters of the first stage; 64 in the paper.
        name: of the model.

    Raises:
        ConfigError: for counts below 1.

    Example:
        >>> resnet50(input_shape=(32, 32, 3), classes=10, width=4).output_shape
        (None, 10)

    Source: He et al. (arXiv:1512.03385), table 1. A stage's stride is in the first
    1x1 convolution of its first block, as in the paper.
    """
    return _network(
        name,
        (3, 4, 6, 3),
        _bottleneck_block,
        input_shape=input_shape,
        classes=classes,
        activation=activation,
        conv_bias=conv_bias,
        width=width,
    )


def _network(
    network,
    blocks,
    make,
    *,
    input_shape=(224, 224, 3),
    classes=1000,
    activation=None,
    conv_bias=False,
    width=64,
    name=None,
):
    _build.counts(classes=classes, width=width)
    inputs = keras.Input(input_shape, name="image")
    x = layers.ZeroPadding2D(3, name="conv1_pad")(inputs)
    x = layers.Conv2D(
        width,
        7,
        strides=2,
        use_bias=conv_bias,
        kernel_initializer="he_normal",
        name="conv1_conv",
    )(x)
    x = _norm_relu(x, "conv1")
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)
    for stage, count in enumerate(blocks):
        for block in range(count):
            x = make(
                x,
                width * 2**stage,
                strides=2 if stage and not block else 1,
                bias=conv_bias,
                name=f"conv{stage + 2}_block{block + 1}",
            )
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dense(classes, activation=activation, name="predictions")(x)
    return keras.Model(inputs, x, name=name or network)


def _norm(x, name: str):
    return _build.norm(x, name=f"{name}_bn", momentum=MOMENTUM, epsilon=EPSILON)


def _norm_relu(x, name: str):
    return layers.ReLU(name=f"{name}_relu")(_norm(x, name))


def _conv(x, filters: int, size: int, name: str, *, bias: bool, strides: int = 1):
    return _build.conv(
        x, filters, size, strides=strides, bias=bias, name=f"{name}_conv"
    )


def _basic_block(x, filters, *, strides, bias, name):
    short = x
    if strides > 1 or x.shape[_build.channel_axis()] != filters:
        short = _conv(x, filters, 1, f"{name}_0", bias=bias, strides=strides)
        short = _norm(short, f"{name}_0")
    y = _conv(x, filters, 3, f"{name}_1", bias=bias, strides=strides)
    y = _norm_relu(y, f"{name}_1")
    y = _norm(_conv(y, filters, 3, f"{name}_2", bias=bias), f"{name}_2")
    y = layers.Add(name=f"{name}_add")([short, y])
    return layers.ReLU(name=f"{name}_out")(y)


def _bottleneck_block(x, filters, *, strides, bias, name):
    short = x
    if strides > 1 or x.shape[_build.channel_axis()] != 4 * filters:
        short = _conv(x, 4 * filters, 1, f"{name}_0", bias=bias, strides=strides)
        short = _norm(short, f"{name}_0")
    y = _conv(x, filters, 1, f"{name}_1", bias=bias, strides=strides)
    y = _norm_relu(y, f"{name}_1")
    y = _norm_relu(_conv(y, filters, 3, f"{name}_2", bias=bias), f"{name}_2")
    y = _norm(_conv(y, 4 * filters, 1, f"{name}_3", bias=bias), f"{name}_3")
    y = layers.Add(name=f"{name}_add")([short, y])
    return layers.ReLU(name=f"{name}_out")(y)
