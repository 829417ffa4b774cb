"""Layers that the inference twin runs as depthwise convolutions, exact in int8."""

import functools
import operator
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_dlopt.graph import hooks
from keras_dlopt.graph.affine import Affine, affine
from keras_dlopt.graph.trace import Trace
from keras_dlopt.int8.placement import lone_normalizations


def as_convolutions(graph: Trace) -> None:
    """Makes average pooling and lone normalizations run as depthwise convolutions.

    LiteRT's int8 average pooling rounds to its input's grid, and halves, which are
    every fourth value of a 2 x 2 pool, always the same way: a bias that grows from
    layer to layer. A depthwise convolution of constant weights 1 / n is the same
    function, has an output grid of its own and rounds without bias; the weights are
    exact in int8, as their scale is 1 / (127 n).

    Pools with "same" padding that reach over the border are left as they are, since
    they divide by the number of values inside.

    A BatchNormalization that no convolution precedes, a Rescaling or a Normalization
    would be a multiplication and an addition with a float between. As a 1 x 1 depthwise
    convolution it is one operation, and exact: each channel has one weight, so its
    scale fits. Rows and vectors are reshaped to images for it.

    `Add` becomes a plain sum, whatever the shapes.

    Args:
        graph: of an inference copy, whose layers are hooked for good.
    """
    lone = {id(layer) for layer in lone_normalizations(graph)}
    for call in graph.calls:
        if isinstance(call.layer, layers.BatchNormalization) and (
            id(call.layer) not in lone
        ):
            continue
        change = affine(call, graph)
        rank = len(graph.specs[call.inputs[0]].shape) if call.inputs else 0
        fits = change is not None and change.axis in (None, rank - 1)
        if change is not None and fits and 2 <= rank <= 4 and call.site == 0:
            hooks.attach(call.layer, _scaling(change))
    for layer in {id(c.layer): c.layer for c in graph.calls}.values():
        pools = isinstance(layer, keras.layers.AveragePooling2D)
        if pools and layer.data_format == "channels_last":
            hooks.attach(layer, _pooling(layer))
        if type(layer) is keras.layers.Add:
            hooks.attach(layer, _sum)


def _sum(_: hooks.Called, given: hooks.Given) -> Any:
    """A plain sum.

    Keras takes a second tensor with one axis that is not 1 for a bias of that axis,
    which the converter refuses.
    """
    return functools.reduce(operator.add, given.inputs())


def _pooling(layer: Any) -> hooks.Hook:
    size, strides = layer.pool_size, layer.strides

    def pool(call: hooks.Called, given: hooks.Given) -> Any:
        (inputs,) = given.inputs()
        inside = all(
            n is not None and n % s == 0 and k == s
            for n, k, s in zip(inputs.shape[1:3], size, strides, strict=True)
        )
        equal = strides[0] == strides[1]  # the kernel knows no others
        if not equal or (layer.padding != "valid" and not inside):
            return call(given)
        kernel = ops.full(
            (*size, inputs.shape[-1], 1), np.float32(1 / (size[0] * size[1]))
        )
        return _convolution(inputs, kernel, strides)

    return pool


def _convolution(inputs: Any, kernel: Any, strides: tuple[int, ...]) -> Any:
    return ops.depthwise_conv(
        inputs, kernel, strides, padding="valid", data_format="channels_last"
    )


def _scaling(change: Affine) -> hooks.Hook:
    def scale(call: hooks.Called, given: hooks.Given) -> Any:
        (inputs,) = given.inputs()
        channels, rank = inputs.shape[-1], len(inputs.shape)
        ends = change.along(change.axis or 0, channels)
        if channels is None or ends is None:
            return call(given)
        if change.axis is None and np.all(change.factor == 1):
            return inputs + float(change.offset[0])  # one ADD
        kernel = ops.convert_to_tensor(ends[0].reshape(1, 1, -1, 1), "float32")
        image = inputs
        for _ in range(4 - rank):
            image = ops.expand_dims(image, -2)
        made = _convolution(image, kernel, (1, 1))
        if ends[1].any():
            made = made + ops.convert_to_tensor(ends[1], "float32")
        for _ in range(4 - rank):
            made = ops.squeeze(made, -2)
        return made

    return scale
