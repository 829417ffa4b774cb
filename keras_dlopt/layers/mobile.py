"""Blocks of light convolutional networks: inverted residual and ConvNeXt."""

import keras

from keras_dlopt import checks
from keras_dlopt.layers._parts import Parts
from keras_dlopt.layers._shared import channel_axis, counts
from keras_dlopt.layers.residual import Residual
from keras_dlopt.layers.squeeze import SqueezeExcitation


@keras.saving.register_keras_serializable("keras_dlopt")
class InvertedResidualBlock(Residual):
    """Expand by 1x1, convolve each channel, project by 1x1 without activation.

        h = relu6(bn(conv1x1(x)));  h = relu6(bn(depthwise(h)));  h = se(h)
        y = bn(conv1x1(h)) + x      (without x where the shapes differ)

    Args:
        filters: of the output.
        strides: of the depthwise convolution.
        expansion: channels inside over channels of the input; 1 leaves the first
            convolution out.
        in_filters: channels of the input; None means `filters`.
        kernel_size: of the depthwise convolution.
        squeeze: ratio of a `SqueezeExcitation` after the depthwise convolution; 0 for
            none.
        momentum: of the moving statistics.
        epsilon: added to the variance.
        zero_init: start the last normalization's scale at 0. Only for blocks whose
            input reaches the sum.
        **kwargs: of `Residual`; here `shortcut="auto"` means none where shapes differ.

    Raises:
        ConfigError: for counts below 1, and as `Residual` and `SqueezeExcitation` do.

    Example:
        >>> InvertedResidualBlock(4)(np.ones((1, 8, 8, 4), "float32")).shape
        TensorShape([1, 8, 8, 4])

    Source: Sandler et al., "MobileNetV2" (arXiv:1801.04381), table 1 and figure 3;
    squeeze-and-excitation as in Howard et al. (arXiv:1905.02244), figure 4.
    """

    _shortcut_may_be_absent = True

    def __init__(
        self,
        filters: int,
        *,
        strides: int = 1,
        expansion: int = 6,
        in_filters: int | None = None,
        kernel_size: int = 3,
        squeeze: float = 0.0,
        momentum: float = 0.9,
        epsilon: float = 1e-3,
        zero_init: bool = False,
        **kwargs,
    ):
        owner = kwargs.get("name") or type(self).__name__
        inside = filters if in_filters is None else in_filters
        filters, strides, expansion, inside, kernel_size = counts(
            owner,
            filters=filters,
            strides=strides,
            expansion=expansion,
            in_filters=inside,
            kernel_size=kernel_size,
        )
        squeeze = checks.probability(squeeze, name=f"{owner}: squeeze")
        parts = Parts.of(owner, kwargs, momentum, epsilon)
        body: list[keras.layers.Layer] = []
        if expansion > 1:
            body += [
                parts.conv(expansion * inside, 1, name="expand"),
                parts.norm(name="expand_bn"),
                parts.relu(name="expand_relu", top=6.0),
            ]
        body += [
            parts.depthwise(kernel_size, strides=strides, name="depthwise"),
            parts.norm(name="depthwise_bn"),
            parts.relu(name="depthwise_relu", top=6.0),
        ]
        if squeeze:
            form = parts.data_format
            body.append(
                SqueezeExcitation(
                    squeeze, data_format=form, dtype=parts.dtype, name="squeeze"
                )
            )
        body += [
            parts.conv(filters, 1, name="project"),
            parts.norm(name="project_bn", zero=zero_init),
        ]
        super().__init__(body, **kwargs)
        self.filters, self.strides, self.expansion = filters, strides, expansion
        self.in_filters = None if in_filters is None else inside
        self.kernel_size = kernel_size
        self.squeeze = squeeze
        self.momentum, self.epsilon = parts.momentum, parts.epsilon
        self.zero_init = checks.boolean(zero_init, name=f"{owner}: zero_init")


@keras.saving.register_keras_serializable("keras_dlopt")
class ConvNeXtBlock(Residual):
    """A large depthwise convolution, then a perceptron per position.

        y = gamma * (W2 gelu(W1 layer_norm(depthwise(x)))) + x

    Args:
        filters: of input and output.
        kernel_size: of the depthwise convolution.
        expansion: channels inside over `filters`.
        **kwargs: of `Residual`; `scale` is `"layerscale"` unless given.

    Raises:
        ConfigError: for counts below 1, and as `Residual` does.

    Example:
        >>> ConvNeXtBlock(4)(np.ones((1, 8, 8, 4), "float32")).shape
        TensorShape([1, 8, 8, 4])

    Source: Liu et al., "A ConvNet for the 2020s" (arXiv:2201.03545), figure 4.
    """

    def __init__(
        self, filters: int, *, kernel_size: int = 7, expansion: int = 4, **kwargs
    ):
        owner = kwargs.get("name") or type(self).__name__
        filters, kernel_size, expansion = counts(
            owner, filters=filters, kernel_size=kernel_size, expansion=expansion
        )
        parts = Parts.of(owner, kwargs, momentum=0.9, epsilon=1e-6)
        form, dtype = parts.data_format, parts.dtype

        def pointwise(units: int, name: str, activation: str | None = None):
            return keras.layers.Conv2D(
                units,
                1,
                activation=activation,
                data_format=form,
                dtype=dtype,
                name=name,
            )

        body = [
            parts.depthwise(kernel_size, name="depthwise", bias=True),
            keras.layers.LayerNormalization(
                axis=channel_axis(form), epsilon=1e-6, dtype=dtype, name="norm"
            ),
            pointwise(expansion * filters, "expand", "gelu"),
            pointwise(filters, "project"),
        ]
        super().__init__(body, **{"scale": "layerscale", **kwargs})
        self.filters, self.kernel_size = filters, kernel_size
        self.expansion = expansion
