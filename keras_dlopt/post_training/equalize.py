"""Cross-layer equalization: the same function with kernels that quantize better."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.channels import (
    by_input,
    by_output,
    scaled_inputs,
    scaled_outputs,
)
from keras_dlopt.graph.folding import fold_batch_normalization
from keras_dlopt.graph.kinds import activation_name
from keras_dlopt.graph.linear import Linear, linear_layers
from keras_dlopt.graph.trace import Trace, trace
from keras_dlopt.runtime.values import to_numpy

# They treat channels apart, and f(s x) = s f(x) for s > 0.
_CHANNELWISE = (
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.Dropout,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.LeakyReLU,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pair:
    """Two layers with nothing between that mixes channels or bends twice."""

    first: Linear
    second: Linear
    clipped: list[Any]


def equalize(
    model: keras.Model,
    *,
    relu6: str = "replace",
    iterations: int = 20,
    example: Any = None,
) -> keras.Model:
    """A model whose neighbouring kernels have channels of like size.

    Folds BatchNormalization, then scales the channels between each two convolution or
    dense layers: with r1 and r2 the largest magnitudes of channel i in the first
    kernel's outputs and in the second one's inputs,

        s = sqrt(r1 / r2),   kernel1 /= s,   bias1 /= s,   kernel2 *= s

    until nothing moves. ReLU, pooling and padding may stand between. It is one scale a
    kernel (`per_channel=False`) and activations that gain; kernels with a scale per
    output channel need it less.

    Args:
        model: a built Sequential or Functional model; it stays as it is.
        relu6: `"replace"` makes ReLU6 between two layers a ReLU, as in the paper, which
            changes the function where it clipped; `"keep"` leaves such pairs alone.
        iterations: over all pairs, at most.
        example: a batch of inputs, for models that do not know their input's shape.

    Returns:
        A new Functional float model.

    Raises:
        ConfigError: for a choice of `relu6` that is not known.
        ModelError: for a subclassed model.

    Example:
        >>> net = keras.Sequential([
        ...     keras.Input((4,)),
        ...     keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
        >>> bool(np.allclose(net(x), equalize(net)(x), atol=1e-5))
        True

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
    Correction" (arXiv:1906.04721), section 4.1, equations 8 to 11.
    Differs from the paper: biases that grow large are not absorbed into the next layer.
    """
    if relu6 not in ("replace", "keep"):
        raise ConfigError(f"relu6 must be 'replace' or 'keep'. Received: {relu6!r}.")
    folded = fold_batch_normalization(model)
    pairs = _pairs(folded, trace(folded, example))
    if relu6 == "keep":
        pairs = [pair for pair in pairs if not pair.clipped]
    for pair in pairs:
        for layer in pair.clipped:
            _unclip(layer)
    for _ in range(iterations):
        if not sum(_equalize(pair) for pair in pairs):
            break
    return folded


def _pairs(model: keras.Model, graph: Trace) -> list[_Pair]:
    found = {
        id(linear.layer): linear
        for linear in linear_layers(model, graph)
        if getattr(linear.layer, "groups", 1) == 1
    }
    pairs = []
    for first in found.values():
        calls = graph.sites(first.layer)
        clipped: list[Any] = []
        last = _end(calls[0], graph, clipped) if len(calls) == 1 else None
        second = None if last is None else found.get(id(last.layer))
        if second is not None and len(graph.sites(second.layer)) == 1:
            pairs.append(_Pair(first, second, clipped))
    return pairs


def _end(call: Any, graph: Trace, clipped: list[Any]) -> Any:
    """The next call that is not channelwise; None if there is more than one way."""
    while True:
        if not _homogeneous(call.layer, clipped):
            return None
        call = graph.only_consumer(call.outputs[0])
        if call is None:
            return None
        bends = isinstance(call.layer, (layers.ReLU, layers.Activation))
        if not bends and not isinstance(call.layer, _CHANNELWISE):
            return call


def _homogeneous(layer: Any, clipped: list[Any]) -> bool:
    """Whether scaling commutes with the end of a layer, but for its upper bound."""
    if isinstance(layer, layers.ReLU):
        if layer.threshold or layer.max_value not in (None, 6, 6.0):
            return False
        if layer.max_value is not None:
            clipped.append(layer)
        return True
    if isinstance(layer, layers.LeakyReLU):
        return True
    name = activation_name(layer)
    if name == "relu6":
        clipped.append(layer)
    return name in ("linear", "relu", "relu6")


def _unclip(layer: Any) -> None:
    if isinstance(layer, layers.ReLU):
        layer.max_value = None
    else:
        layer.activation = keras.activations.relu


def _equalize(pair: _Pair) -> bool:
    """Scales one pair; whether it changed by more than a thousandth."""
    one, two = pair.first, pair.second
    kernel, other = to_numpy(one.target.variable), to_numpy(two.target.variable)
    ones = _largest(by_output(one.target, kernel))
    twos = _largest(by_input(two.target, other))
    if len(ones) != len(twos):
        return False
    used = (ones > 0) & (twos > 0)
    scale = np.sqrt(np.where(used, ones, 1.0) / np.where(used, twos, 1.0))
    one.target.variable.assign(scaled_outputs(one.target, kernel, 1 / scale))
    two.target.variable.assign(scaled_inputs(two.target, other, scale))
    if one.layer.use_bias:
        one.layer.bias.assign(to_numpy(one.layer.bias) / scale)
    return bool(np.abs(scale - 1).max() > 1e-3)


def _largest(rows: np.ndarray) -> np.ndarray:
    """The largest magnitude of each row, in float64."""
    return np.abs(rows).max(axis=1).astype("float64")
