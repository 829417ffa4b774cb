"""A convolution or dense layer that takes in what is a x + b before or after it."""

from typing import Any

import numpy as np
from keras import layers

from keras_dlopt.graph.affine import Affine
from keras_dlopt.graph.channels import scaled_outputs, tensor_axis
from keras_dlopt.graph.kinds import calls_like, ends_linear
from keras_dlopt.graph.rebuilding import Piece, like
from keras_dlopt.graph.targets import Target
from keras_dlopt.graph.trace import Call, Trace
from keras_dlopt.runtime.values import to_numpy

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_TAKES = (layers.Dense, *_CONVOLUTIONS, *_DEPTHWISE, *_TRANSPOSED)


def takes(layer: Any) -> bool:
    """Whether a layer is of a kind that can take something in."""
    return any(calls_like(layer, kind) for kind in _TAKES)


def fits(into: Call, change: Affine, graph: Trace, *, before: bool) -> bool:
    """Whether a layer can take a change in, exactly."""
    layer = into.layer
    spec = graph.specs[(into.inputs if before else into.outputs)[0]]
    axis = tensor_axis(layer) % len(spec.shape)
    ends = change.along(axis, spec.shape[axis])
    plain = len(layer.weights) == 1 + bool(layer.use_bias)
    if ends is None or not plain:
        return False
    if not before:
        return ends_linear(layer)
    return not ends[1].any() or _takes_offsets(layer)


def _takes_offsets(layer: Any) -> bool:
    """Whether each output sums the whole window, no padding in it."""
    if isinstance(layer, layers.Dense):
        return True
    if isinstance(layer, _TRANSPOSED):
        return False  # at the borders fewer inputs reach an output
    return bool(layer.padding == "valid" or max(layer.kernel_size) == 1)


def taken(layer: Any, change: Affine, *, before: bool) -> list[Piece]:
    """The layer with the change in its kernel and bias, and its weights."""
    return (_taken_before if before else _taken_after)(layer, change)


def _taken_after(layer: Any, change: Affine) -> list[Piece]:
    kernel = to_numpy(layer.kernel)
    channels = layer.units if isinstance(layer, layers.Dense) else _outputs(layer)
    axis = change.axis if change.axis is not None else 0
    ends = change.along(axis, channels)
    assert ends is not None
    factor, offset = ends
    if layer.use_bias:
        offset = offset + to_numpy(layer.bias) * factor
    target = Target("kernel", "weight", layer.kernel, layer)
    return _made(layer, scaled_outputs(target, kernel, factor), offset)


def _taken_before(layer: Any, change: Affine) -> list[Piece]:
    kernel = to_numpy(layer.kernel).astype("float64")
    axis = change.axis if change.axis is not None else 0
    if isinstance(layer, _DEPTHWISE):
        ends = change.along(axis, kernel.shape[-2])
        assert ends is not None
        factor, offset = (part[:, None] for part in ends)
        added = (kernel * offset).reshape(-1, *kernel.shape[-2:]).sum(axis=0).ravel()
    elif isinstance(layer, _TRANSPOSED):
        ends = change.along(axis, kernel.shape[-1])
        assert ends is not None
        factor, added = ends[0], np.zeros(kernel.shape[-2])
    else:
        groups = getattr(layer, "groups", 1)
        inputs, outputs = kernel.shape[-2:]
        ends = change.along(axis, inputs * groups)
        assert ends is not None
        # An output sees the inputs of its own group only.
        group = np.arange(outputs) // (outputs // groups)
        seen = group[None, :] * inputs + np.arange(inputs)[:, None]
        factor, offset = ends[0][seen], ends[1][seen]
        added = (kernel * offset).reshape(-1, outputs).sum(axis=0)
    if layer.use_bias:
        added = added + to_numpy(layer.bias)
    return _made(layer, kernel * factor, added)


def _outputs(layer: Any) -> int:
    if isinstance(layer, _DEPTHWISE):
        return int(np.prod(layer.kernel.shape[-2:]))
    return int(layer.filters)


def _made(layer: Any, kernel: np.ndarray, bias: np.ndarray) -> list[Piece]:
    use_bias = bool(layer.use_bias or bias.any())
    weights = [kernel.astype(to_numpy(layer.kernel).dtype)]
    weights += [bias.astype("float32")] if use_bias else []
    return [(like(layer, use_bias=use_bias), weights)]
