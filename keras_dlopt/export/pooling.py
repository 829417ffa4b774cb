"""Average pooling that rounds as the other int8 kernels do."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np


def as_convolutions(layers: Iterable[Any]) -> None:
    """Makes 2-D average pooling layers run as depthwise convolutions.

    LiteRT's int8 average pooling rounds to its input's grid, and halves, which are
    every fourth value of a 2 x 2 pool, always the same way: a bias that grows from
    layer to layer. A depthwise convolution of constant weights 1 / n is the same
    function, has an output grid of its own and rounds without bias; the weights are
    exact in int8, as their scale is 1 / (127 n).

    Pools with "same" padding that reach over the border are left as they are, since
    they divide by the number of values inside.

    Args:
        layers: of an inference copy; `call` is replaced on the instances.
    """
    for layer in layers:
        pools = isinstance(layer, keras.layers.AveragePooling2D)
        if pools and layer.data_format == "channels_last":
            layer.call = _pooling(layer, layer.call)


def _pooling(layer: Any, call: Any) -> Any:
    import tensorflow as tf

    size, strides = layer.pool_size, layer.strides

    def pool(inputs):
        inside = all(
            n is not None and n % s == 0 and k == s
            for n, k, s in zip(inputs.shape[1:3], size, strides, strict=True)
        )
        equal = strides[0] == strides[1]  # the kernel knows no others
        if not equal or (layer.padding != "valid" and not inside):
            return call(inputs)
        weight = np.float32(1 / (size[0] * size[1]))
        kernel = tf.fill((*size, inputs.shape[-1], 1), weight)
        return tf.nn.depthwise_conv2d(inputs, kernel, (1, *strides, 1), "VALID")

    return pool
