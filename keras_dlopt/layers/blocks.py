"""The residual blocks of ResNets."""

import keras

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.layers._parts import Parts
from keras_dlopt.layers._shared import counts
from keras_dlopt.layers.residual import Residual


class _NormalizedBlock(Residual):
    """Base of the blocks whose projection is followed by a normalization."""

    filters: int
    strides: int
    momentum: float
    epsilon: float

    def _make_projection(self, rank, channels, strides):
        layers = super()._make_projection(rank, channels, strides)
        return [*layers, self._parts().norm(name="projection_bn")]

    def _parts(self) -> Parts:
        return Parts(self.data_format, self.policy, self.momentum, self.epsilon)


@keras.saving.register_keras_serializable("keras_dlopt")
class BasicBlock(_NormalizedBlock):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and ResNet-20.

        y = relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))

    Args:
        filters: of both convolutions.
        strides: of the first convolution.
        momentum: of the moving statistics.
        epsilon: added to the variance.
        zero_init: start the second normalization's scale at 0, so that the block
            starts as its shortcut.
        **kwargs: of `Residual`: shortcut, survival, scale, shortcut_loss, ...

    Raises:
        ConfigError: for counts below 1, and as `Residual` does.

    Example:
        >>> BasicBlock(4, strides=2)(np.ones((1, 8, 8, 2), "float32")).shape
        TensorShape([1, 4, 4, 4])

    Source: He et al. (arXiv:1512.03385), figure 2.
    Differs from the paper: `zero_init`, from Goyal et al. (arXiv:1706.02677),
    section 5.1.
    """

    def __init__(
        self,
        filters: int,
        *,
        strides: int = 1,
        momentum: float = 0.9,
        epsilon: float = 1e-3,
        zero_init: bool = True,
        **kwargs,
    ):
        owner = kwargs.get("name") or type(self).__name__
        filters, strides = counts(owner, filters=filters, strides=strides)
        parts = Parts.of(owner, kwargs, momentum, epsilon)
        body = [
            parts.conv(filters, 3, strides=strides, name="conv1"),
            parts.norm(name="bn1"),
            parts.relu(name="relu1"),
            parts.conv(filters, 3, name="conv2"),
            parts.norm(name="bn2", zero=zero_init),
        ]
        super().__init__(body, **{"activation": "relu", **kwargs})
        self.filters, self.strides = filters, strides
        self.momentum, self.epsilon = parts.momentum, parts.epsilon
        self.zero_init = checks.boolean(zero_init, name=f"{owner}: zero_init")


@keras.saving.register_keras_serializable("keras_dlopt")
class BottleneckBlock(_NormalizedBlock):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: the block of ResNet-50.

        y = relu(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))) + shortcut(x))

    Args:
        filters: of the first two convolutions; the last has `expansion * filters`.
        strides: of the first convolution, as in the paper.
        expansion: filters of the last convolution over `filters`.
        groups: of the 3x3 convolution; 32 makes a ResNeXt block.
        momentum: of the moving statistics.
        epsilon: added to the variance.
        zero_init: start the last normalization's scale at 0.
        **kwargs: of `Residual`.

    Raises:
        ConfigError: for counts below 1, filters that groups do not divide, and as
            `Residual` does.

    Example:
        >>> BottleneckBlock(2)(np.ones((1, 8, 8, 3), "float32")).shape
        TensorShape([1, 8, 8, 8])

    Source: He et al. (arXiv:1512.03385), figure 5; groups from Xie et al.
    (arXiv:1611.05431).
    """

    def __init__(
        self,
        filters: int,
        *,
        strides: int = 1,
        expansion: int = 4,
        groups: int = 1,
        momentum: float = 0.9,
        epsilon: float = 1e-3,
        zero_init: bool = True,
        **kwargs,
    ):
        owner = kwargs.get("name") or type(self).__name__
        filters, strides, expansion, groups = counts(
            owner, filters=filters, strides=strides, expansion=expansion, groups=groups
        )
        if filters % groups:
            raise ConfigError(
                f"{owner}: groups must divide filters. Received: filters={filters} and "
                f"groups={groups}. Near it are {filters // groups * groups} and "
                f"{(filters // groups + 1) * groups} filters."
            )
        parts = Parts.of(owner, kwargs, momentum, epsilon)
        body = [
            parts.conv(filters, 1, strides=strides, name="conv1"),
            parts.norm(name="bn1"),
            parts.relu(name="relu1"),
            parts.conv(filters, 3, groups=groups, name="conv2"),
            parts.norm(name="bn2"),
            parts.relu(name="relu2"),
            parts.conv(filters * expansion, 1, name="conv3"),
            parts.norm(name="bn3", zero=zero_init),
        ]
        super().__init__(body, **{"activation": "relu", **kwargs})
        self.filters, self.strides = filters, strides
        self.expansion, self.groups = expansion, groups
        self.momentum, self.epsilon = parts.momentum, parts.epsilon
        self.zero_init = checks.boolean(zero_init, name=f"{owner}: zero_init")


@keras.saving.register_keras_serializable("keras_dlopt")
class PreActivationBlock(_NormalizedBlock):
    """Normalization and ReLU before each convolution; nothing after the sum.

        y = conv2(relu(bn2(conv1(relu(bn1(x)))))) + shortcut(x)

    Args:
        filters: of both convolutions.
        strides: of the first convolution.
        dropout: rate between the two convolutions, in [0, 1), as in Wide-ResNet.
        momentum: of the moving statistics.
        epsilon: added to the variance.
        **kwargs: of `Residual`. `scale="rezero"` makes the block start as its
            shortcut; there is no last normalization whose scale could be 0.

    Raises:
        ConfigError: for counts below 1, a dropout outside [0, 1), and as `Residual`
            does.

    Example:
        >>> PreActivationBlock(4)(np.ones((1, 8, 8, 2), "float32")).shape
        TensorShape([1, 8, 8, 4])

    Source: He et al., "Identity mappings in deep residual networks"
    (arXiv:1603.05027), figure 1b; dropout from Zagoruyko and Komodakis
    (arXiv:1605.07146), section 2.4.
    Differs from the paper: a projection sees `x` itself, without normalization.
    """

    def __init__(
        self,
        filters: int,
        *,
        strides: int = 1,
        dropout: float = 0.0,
        momentum: float = 0.9,
        epsilon: float = 1e-3,
        **kwargs,
    ):
        owner = kwargs.get("name") or type(self).__name__
        filters, strides = counts(owner, filters=filters, strides=strides)
        parts = Parts.of(owner, kwargs, momentum, epsilon)
        body = [
            parts.norm(name="bn1"),
            parts.relu(name="relu1"),
            parts.conv(filters, 3, strides=strides, name="conv1"),
            parts.norm(name="bn2"),
            parts.relu(name="relu2"),
            *dropouts(owner, dropout, kwargs.get("dtype")),
            parts.conv(filters, 3, name="conv2"),
        ]
        super().__init__(body, **kwargs)
        self.filters, self.strides = filters, strides
        self.dropout = checks.decay(dropout, name=f"{owner}: dropout")
        self.momentum, self.epsilon = parts.momentum, parts.epsilon

    def _make_projection(self, rank, channels, strides):
        # The residual's plain projection: nothing normalizes it here.
        return super(_NormalizedBlock, self)._make_projection(rank, channels, strides)


def dropouts(owner: str, rate: float, dtype) -> list[keras.layers.Layer]:
    """One dropout layer, or none for a rate of 0."""
    rate = checks.decay(rate, name=f"{owner}: dropout")
    return [keras.layers.Dropout(rate, dtype=dtype, name="dropout")] if rate else []
