"""Layers and operations that compute a x + b, with a and b constant by channel."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_dlopt import _compat
from keras_dlopt.graph.kinds import calls_like, says_affine
from keras_dlopt.graph.trace import Call, Trace
from keras_dlopt.runtime.values import to_numpy


@dataclasses.dataclass(frozen=True, eq=False)
class Affine:
    """y = factor * x + offset, in float64.

    Attributes:
        factor: one number, or one a channel.
        offset: of the same shape.
        axis: the axis of channels; None where all are treated alike.
    """

    factor: np.ndarray
    offset: np.ndarray
    axis: int | None

    def along(self, axis: int, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Factor and offset of each channel; None if they are along another axis."""
        if self.axis not in (None, axis):
            return None
        size = (channels,)
        return np.broadcast_to(self.factor, size), np.broadcast_to(self.offset, size)

    def after(self, first: "Affine") -> "Affine | None":
        """The two as one, this one last; None if their axes differ."""
        axes = {first.axis, self.axis} - {None}
        if len(axes) > 1:
            return None
        return Affine(
            self.factor * first.factor,
            self.factor * first.offset + self.offset,
            axes.pop() if axes else None,
        )


def channel_factors(normalization: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a BatchNormalization in inference multiplies with and then adds, float64."""
    variance = to_numpy(normalization.moving_variance).astype("float64")
    factor = 1 / np.sqrt(variance + normalization.epsilon)
    if normalization.scale:
        factor = factor * to_numpy(normalization.gamma)
    offset = -to_numpy(normalization.moving_mean) * factor
    if normalization.center:
        offset = offset + to_numpy(normalization.beta)
    return factor, offset


def affine(call: Call, graph: Trace) -> Affine | None:
    """What a call computes, if it is a x + b of its only tensor in a floating type.

    Known are BatchNormalization in inference, Rescaling, Normalization, layers that say
    so by a method `as_affine()`, ConvNeXt's factor by channel, and sums, products and
    quotients of a tensor and a constant between layers.
    """
    if len(call.inputs) != 1 or len(call.outputs) != 1:
        return None
    given, made = graph.specs[call.inputs[0]], graph.specs[call.outputs[0]]
    if given.shape != made.shape or given.dtype != made.dtype:
        return None
    if call.inputs[0] in graph.integers:
        return None
    found = _layer(call.layer, len(given.shape))
    if not isinstance(call.layer, layers.Layer):
        found = _operation(call, given.shape)
    if found is None:
        return None
    with np.errstate(over="ignore"):
        ends = np.asarray([found.factor, found.offset]).astype(made.dtype)
    return found if np.isfinite(ends.astype("float64")).all() else None


def _layer(layer: Any, rank: int) -> Affine | None:
    if calls_like(layer, layers.BatchNormalization):
        factor, offset = channel_factors(layer)
        return Affine(factor, offset, layer.axis % rank)
    if calls_like(layer, layers.Rescaling):
        return _spread(layer.scale, layer.offset, rank)
    if (
        calls_like(layer, layers.Normalization)
        and getattr(layer, "mean", None) is not None
    ):
        mean = to_numpy(layer.mean).astype("float64")
        width = np.sqrt(to_numpy(layer.variance).astype("float64"))
        width = np.maximum(width, keras.config.epsilon())
        factor = width if layer.invert else 1 / width
        return _spread(factor, mean if layer.invert else -mean * factor, rank)
    if type(layer) is _compat.FactorByChannel:
        return _spread(to_numpy(layer.gamma), 0.0, rank)
    if says_affine(layer):
        factor, offset, axis = layer.as_affine()
        both = np.broadcast_arrays(np.float64(factor), np.float64(offset))
        a, b = (np.array(one).reshape(-1) for one in both)
        return Affine(a, b, axis)
    return None


_OPERATIONS = ("Add", "Divide", "Multiply", "Negative", "Subtract", "TrueDivide")


def _operation(call: Call, shape: tuple[int, ...]) -> Affine | None:
    name = type(call.layer).__name__
    if name not in _OPERATIONS or len(call.arguments) > 2:
        return None
    if name == "Negative":
        return _spread(-1.0, 0.0, len(shape))
    try:
        (constant,) = [
            np.asarray(a, "float64") for a in call.arguments if a is not None
        ]
    except (TypeError, ValueError):
        return None
    first = call.arguments[0] is None
    if name in ("Divide", "TrueDivide"):
        if not first or not constant.all():
            return None
        return _spread(1 / constant, 0.0, len(shape))
    if name == "Multiply":
        return _spread(constant, 0.0, len(shape))
    if name == "Add":
        return _spread(1.0, constant, len(shape))
    return (
        _spread(1.0, -constant, len(shape))
        if first
        else _spread(-1.0, constant, len(shape))
    )


def _spread(factor: Any, offset: Any, rank: int) -> Affine | None:
    """An affine function by one number, or by the last axis; None for others."""
    factor, offset = np.broadcast_arrays(
        np.asarray(factor, "float64"), np.asarray(offset, "float64")
    )
    if factor.size == 1:
        return Affine(factor.reshape(1), offset.reshape(1), None)
    if factor.size != factor.shape[-1] or factor.ndim > rank:
        return None
    return Affine(factor.reshape(-1), offset.reshape(-1), rank - 1)
