"""Small networks in the manner of MobileNetV2, ConvNeXt and ViT."""

import keras
from keras import layers

from keras_dlopt.errors import ConfigError
from keras_dlopt.layers import ConvNeXtBlock, TransformerBlock
from keras_dlopt.models import _build


def mobilenet_small(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    width: int = 16,
    expansion: int = 6,
    blocks: tuple[int, ...] = (1, 2, 3, 2),
    activation: str | None = None,
    momentum: float = 0.9,
    name: str = "mobilenet_small",
) -> keras.Model:
    """Inverted residual blocks, as in MobileNetV2, for small images.

    Stages of `width`, 2, 4 and 8 times `width` filters (`width * 2**i`); each but the
    first starts with stride 2. A Functional graph of standard Keras layers.

    Args:
        input_shape: `(height, width, channels)`.
        classes: number of outputs.
        width: filters of the first stage.
        expansion: channels inside a block over those of its input.
        blocks: blocks per stage.
        activation: of the last layer; None returns logits.
        momentum: of the moving statistics.
        name: of the model.

    Raises:
        ConfigError: for counts below 1.

    Example:
        >>> mobilenet_small(width=4, blocks=(1, 1)).output_shape
        (None, 10)

    Source: Sandler et al., "MobileNetV2" (arXiv:1801.04381), section 4.
    Differs from the paper: fewer and narrower stages, and a stem without stride, for
    images of about 32 pixels; no last 1x1 convolution to 1280 channels.
    """
    _build.counts(classes=classes, width=width, expansion=expansion)
    inputs = keras.Input(input_shape, name="image")
    x = _build.conv(inputs, 2 * width, name="stem_conv")
    x = _build.norm(x, name="stem_bn", momentum=momentum)
    x = layers.ReLU(6.0, name="stem_relu")(x)
    for stage, count in enumerate(blocks):
        for block in range(count):
            x = _inverted_block(
                x,
                width * 2**stage,
                strides=2 if stage and not block else 1,
                expansion=expansion if stage or block else 1,
                momentum=momentum,
                name=f"stage{stage + 1}_block{block + 1}",
            )
    outputs = _build.head(x, classes, activation)
    return keras.Model(inputs, outputs, name=name)


def _inverted_block(x, filters, *, strides, expansion, momentum, name):
    channels = x.shape[_build.channel_axis()]
    y = x
    if expansion > 1:
        y = _build.conv(y, expansion * channels, 1, name=f"{name}_expand")
        y = _build.norm(y, name=f"{name}_expand_bn", momentum=momentum)
        y = layers.ReLU(6.0, name=f"{name}_expand_relu")(y)
    y = layers.DepthwiseConv2D(
        3,
        strides=strides,
        padding="same",
        use_bias=False,
        depthwise_initializer="he_normal",
        name=f"{name}_depthwise",
    )(y)
    y = _build.norm(y, name=f"{name}_depthwise_bn", momentum=momentum)
    y = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(y)
    y = _build.conv(y, filters, 1, name=f"{name}_project")
    y = _build.norm(y, name=f"{name}_project_bn", momentum=momentum)
    if strides == 1 and channels == filters:
        y = layers.Add(name=f"{name}_add")([y, x])
    return y


def convnext_small(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    width: int = 24,
    blocks: tuple[int, ...] = (1, 1, 3),
    patch: int = 2,
    kernel_size: int = 7,
    survival: float = 1.0,
    activation: str | None = None,
    seed: int | None = None,
    name: str = "convnext_small",
) -> keras.Model:
    """ConvNeXt blocks for small images.

    A `patch` x `patch` stem; stages of `width * 2**i` channels with 2x2 downsampling
    between them; global average pooling, normalization and a dense layer.

    Args:
        input_shape: `(height, width, channels)`.
        classes: number of outputs.
        width: channels of the first stage.
        blocks: blocks per stage.
        patch: size and stride of the stem, in pixels; 4 in the paper.
        kernel_size: of the depthwise convolutions.
        survival: of the last block; the blocks before it go down to it linearly.
        activation: of the last layer; None returns logits.
        seed: of stochastic depth.
        name: of the model.

    Raises:
        ConfigError: for counts below 1 or a survival outside (0, 1].

    Example:
        >>> convnext_small(width=8, blocks=(1, 1)).output_shape
        (None, 10)

    Source: Liu et al., "A ConvNet for the 2020s" (arXiv:2201.03545), section 2.
    Differs from the paper: three stages and a smaller stem, for small images.
    """
    _build.counts(classes=classes, width=width, patch=patch)
    inputs = keras.Input(input_shape, name="image")
    x = layers.Conv2D(width, patch, strides=patch, name="stem_conv")(inputs)
    x = _layer_norm(x, "stem_norm")
    index, total = 0, sum(blocks)
    for stage, count in enumerate(blocks):
        filters = width * 2**stage
        if stage:
            x = _layer_norm(x, f"stage{stage + 1}_norm")
            down = layers.Conv2D(filters, 2, strides=2, name=f"stage{stage + 1}_down")
            x = down(x)
        for block in range(count):
            index += 1
            x = ConvNeXtBlock(
                filters,
                kernel_size=kernel_size,
                survival=1.0 - (1.0 - survival) * index / total,
                seed=None if seed is None else seed + index,
                name=f"stage{stage + 1}_block{block + 1}",
            )(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.LayerNormalization(epsilon=1e-6, name="final_norm")(x)
    x = layers.Dense(classes, activation=activation, name="classifier")(x)
    return keras.Model(inputs, x, name=name)


def _layer_norm(x, name: str):
    axis = _build.channel_axis()
    return layers.LayerNormalization(axis=axis, epsilon=1e-6, name=name)(x)


def vit_small(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    patch: int = 4,
    units: int = 64,
    depth: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
    survival: float = 1.0,
    activation: str | None = None,
    seed: int | None = None,
    name: str = "vit_small",
) -> keras.Model:
    """A small vision transformer.

    Patches become vectors, learned positions are added, `depth` pre-norm transformer
    blocks follow, and the mean of the sequence is classified.

    Args:
        input_shape: `(height, width, channels)`, sides divisible by `patch`.
        classes: number of outputs.
        patch: side of a patch, in pixels.
        units: width of the sequence, a multiple of `heads`.
        depth: number of blocks.
        heads: of the attention.
        dropout: rate in the blocks, in [0, 1).
        survival: of every branch; see `StochasticDepth`.
        activation: of the last layer; None returns logits.
        seed: of stochastic depth.
        name: of the model.

    Raises:
        ConfigError: for sides that `patch` does not divide, and impossible blocks.

    Example:
        >>> vit_small(units=8, depth=1, heads=2).output_shape
        (None, 10)

    Source: Dosovitskiy et al., "An image is worth 16x16 words" (arXiv:2010.11929),
    section 3.1.
    Differs from the paper: mean pooling in place of a class token.
    """
    _build.counts(classes=classes, patch=patch, units=units, depth=depth)
    first = keras.config.image_data_format() == "channels_first"
    sides = input_shape[1:] if first else input_shape[:2]
    if any(side % patch for side in sides):
        raise ConfigError(
            f"patch must divide both sides of the image. Received: patch={patch} and "
            f"input_shape={input_shape}."
        )
    inputs = keras.Input(input_shape, name="image")
    x = layers.Conv2D(units, patch, strides=patch, name="patches")(inputs)
    if first:
        x = layers.Permute((2, 3, 1), name="channels_last")(x)
    x = layers.Reshape((-1, units), name="sequence")(x)
    x = Positions(name="positions")(x)
    for i in range(depth):
        x = TransformerBlock(
            units,
            heads=heads,
            dropout=dropout,
            survival=survival,
            seed=None if seed is None else seed + 2 * i,
            name=f"block{i + 1}",
        )(x)
    x = layers.LayerNormalization(epsilon=1e-6, name="final_norm")(x)
    x = layers.GlobalAveragePooling1D(data_format="channels_last", name="pool")(x)
    x = layers.Dense(classes, activation=activation, name="classifier")(x)
    return keras.Model(inputs, x, name=name)


@keras.saving.register_keras_serializable("keras_dlopt")
class Positions(layers.Layer):
    """Adds a trained vector to each position of a sequence of fixed length."""

    def build(self, input_shape=None):
        self.embedding = self.add_weight(
            name="embedding",
            shape=tuple(input_shape[1:]),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )

    def call(self, inputs):
        return inputs + self.embedding
