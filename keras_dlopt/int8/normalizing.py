"""Normalizations along the features of each example, in parts that int8 has."""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

from keras_dlopt.graph.kinds import normalizes_last_axis
from keras_dlopt.graph.rebuilding import Piece
from keras_dlopt.graph.symbolic import Node
from keras_dlopt.layers import ScaleAndShift
from keras_dlopt.runtime.values import to_numpy

Make = Callable[[], list[Piece]]


def normalization(node: Node, normal: Any) -> Make | None:
    """What makes the parts of a normalization; None for any other layer.

        d = x - mean(x),   y = d / sqrt(mean(d^2) + e) * gamma + beta,   e = epsilon

    Rows whose widths differ by more than a factor of ten have no mean(d^2) in 8 bits,
    so each is brought to about one width first:

        r = (mean |d| + sqrt(e))^-1/2,   z = d r r
        d / sqrt(mean(d^2) + e) = z / sqrt(mean(z^2) + (sqrt(e) r r)^2)

    Args:
        node: a call of the layer.
        normal: brings a model into normal form.
    """
    layer = node.operation
    if len(node.inputs) != 1:
        return None
    shape = node.inputs[0].shape
    body = _body(layer, shape)
    return (
        None if body is None else functools.partial(_made, layer, shape, body, normal)
    )


def _body(layer: Any, shape: Any) -> Any:
    """What computes the normalized values, and the last axis' gamma and beta."""
    if not normalizes_last_axis(layer):
        return None
    if isinstance(layer, layers.GroupNormalization):
        if None in shape[1:] or len(shape) < 3:
            return None
        groups = shape[-1] if layer.groups == -1 else layer.groups
        return functools.partial(
            _in_groups, groups=groups, shape=shape[1:], epsilon=layer.epsilon
        )
    centered = isinstance(layer, layers.LayerNormalization)
    return functools.partial(
        _normalized, axes=-1, epsilon=layer.epsilon, centered=centered
    )


def _normalized(x: Any, *, axes: Any, epsilon: float, centered: bool = True) -> Any:
    mean = functools.partial(ops.mean, axis=axes, keepdims=True)
    d, least = x - mean(x) if centered else x, math.sqrt(epsilon)
    r = ops.rsqrt(mean(ops.absolute(d)) + least)
    z, rest = d * r * r, r * least * r
    return z * ops.rsqrt(mean(z * z) + rest * rest)


def _in_groups(x: Any, *, groups: int, shape: Any, epsilon: float) -> Any:
    rows = ops.reshape(x, (-1, _product(shape[:-1]), groups, shape[-1] // groups))
    made = _normalized(rows, axes=(1, 3), epsilon=epsilon)
    return ops.reshape(made, (-1, *shape))


def _product(sizes: Any) -> int:
    return functools.reduce(lambda a, b: a * b, sizes, 1)


def _made(layer: Any, shape: Any, body: Any, normal: Any) -> list[Any]:
    inputs = keras.Input(batch_shape=shape)
    made, weights = body(inputs), _weights(layer)
    if any(w is not None for w in weights):
        gamma, beta = weights
        ends = ScaleAndShift(
            scale=gamma is not None, center=beta is not None, name="ends"
        )
        made = ends(made)
        ends.set_weights([w for w in weights if w is not None])
    model = keras.Model(inputs, made, name=layer.name)
    model.trainable = layer.trainable
    return [(normal(model), [])]


def _weights(layer: Any) -> list[Any]:
    """Gamma and beta; None for what the layer does not have."""
    if isinstance(layer, layers.RMSNormalization):
        return [to_numpy(layer.scale), None]
    return [
        to_numpy(layer.gamma) if layer.scale else None,
        to_numpy(layer.beta) if layer.center else None,
    ]
