"""Which axes of a weight count the channels that its layer takes and makes.

Decided by the layer's class, subclasses included, and for einsum layers by their
equation. Anything else has Keras' common layout: inputs last but one, outputs last.
"""

from typing import Any

import numpy as np
from keras import layers

from keras_dlopt.graph.targets import Target

Axes = tuple[int, ...]

_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


def is_depthwise(target: Target) -> bool:
    """Whether a kernel is (..., channels, multiplier), each channel for itself."""
    if isinstance(target.layer, _DEPTHWISE):
        return target.name == "kernel"
    return target.name == "depthwise_kernel"


def is_transposed(target: Target) -> bool:
    """Whether a kernel is (..., outputs, inputs)."""
    return isinstance(target.layer, _TRANSPOSED) and target.name == "kernel"


def output_axes(target: Target, rank: int) -> Axes:
    """The axes of a weight that count output channels, in the order of the outputs.

    Args:
        target: where the weight is.
        rank: its number of dimensions; with fewer than two, all are outputs.
    """
    if rank < 2:
        return tuple(range(rank))
    if is_depthwise(target):
        return (rank - 2, rank - 1)
    if is_transposed(target):
        return (rank - 2,)
    kernel, outputs = _equation(target, rank)
    return tuple(kernel.index(x) for x in outputs if x in kernel) or (rank - 1,)


def input_axes(target: Target, rank: int) -> Axes:
    """The axes of a weight that count input channels; of a group, where it has groups.

    Args:
        target: where the weight is.
        rank: its number of dimensions; with fewer than two there are none.
    """
    if rank < 2:
        return ()
    if is_transposed(target):
        return (rank - 1,)
    kernel, outputs = _equation(target, rank)
    summed = tuple(i for i, x in enumerate(kernel) if x not in outputs)
    return summed or (rank - 2,)


def tensor_axis(layer: Any) -> int:
    """The axis of a layer's inputs and outputs that counts channels: 1 or the last."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def _equation(target: Target, rank: int) -> tuple[str, str]:
    """The letters of an einsum layer's kernel and outputs; empty for other weights."""
    equation = getattr(target.layer, "equation", "")
    if not isinstance(target.layer, layers.EinsumDense) or target.name != "kernel":
        return "", ""
    terms, outputs = equation.replace(" ", "").split("->")
    kernel = terms.split(",")[1]
    return (kernel, outputs) if len(kernel) == rank else ("", "")


def by_output(target: Target, weight: np.ndarray) -> np.ndarray:
    """A weight as (output channels, rest)."""
    return _rows(weight, output_axes(target, weight.ndim))


def by_input(target: Target, weight: np.ndarray) -> np.ndarray:
    """A weight as (input channels, rest)."""
    return _rows(weight, input_axes(target, weight.ndim))


def scaled_outputs(target: Target, weight: np.ndarray, factor: Any) -> np.ndarray:
    """A weight with each output channel times a factor, one a channel."""
    scaled: np.ndarray = weight * _along(
        weight, output_axes(target, weight.ndim), factor
    )
    return scaled


def scaled_inputs(target: Target, weight: np.ndarray, factor: Any) -> np.ndarray:
    """A weight with each input channel times a factor, one a channel."""
    scaled: np.ndarray = weight * _along(
        weight, input_axes(target, weight.ndim), factor
    )
    return scaled


def _rows(weight: np.ndarray, axes: Axes) -> np.ndarray:
    moved = np.moveaxis(weight, axes, range(len(axes)))
    return moved.reshape(int(np.prod(moved.shape[: len(axes)])), -1)


def _along(weight: np.ndarray, axes: Axes, factor: Any) -> np.ndarray:
    """Numbers, one an index of some axes, in a shape that broadcasts to the weight."""
    shape = [weight.shape[a] for a in axes] + [1] * (weight.ndim - len(axes))
    return np.moveaxis(np.reshape(factor, shape), range(len(axes)), axes)
