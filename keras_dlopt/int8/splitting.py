"""Layers in parts, each of which int8 can quantize on both sides."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import layers

from keras_dlopt import _compat
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.kinds import (
    FUSED_ACTIVATIONS,
    LINEAR,
    activation_name,
    calls_like,
    is_rewritten,
)
from keras_dlopt.graph.rebuilding import Piece, like, reaches, rebuilt
from keras_dlopt.graph.symbolic import Node, model_of_parts
from keras_dlopt.graph.walk import as_functional, layers_below, numbered, walk
from keras_dlopt.int8.attending import attention
from keras_dlopt.int8.normalizing import normalization
from keras_dlopt.layers import SqueezeExcitation
from keras_dlopt.runtime.values import to_numpy

_Make = Callable[[], list[Piece]]
_DEPTHWISE = {
    layers.SeparableConv1D: (layers.DepthwiseConv1D, layers.Conv1D),
    layers.SeparableConv2D: (layers.DepthwiseConv2D, layers.Conv2D),
}


class Names:
    """Names of layers that a model does not have yet."""

    def __init__(self, given: Iterable[str]):
        self.given = set(given)
        self._counts: dict[str, int] = {}

    def new(self, name: str) -> str:
        """The name, or the first of name_1, name_2, ... that is free."""
        while (unique := numbered(name, self._counts)) in self.given:
            pass
        self.given.add(unique)
        return unique


def split_activations(model: keras.Model) -> keras.Model:
    """The same model with sigmoid, softmax, tanh, ... as layers of their own.

    A dense or convolution layer that ends in such a function leaves no place for the
    quantizer that int8 needs between the two; ReLU is fused and stays. `prepare` does
    this and all else that int8 needs.

    Args:
        model: a built Sequential or Functional model; it stays as it is.

    Returns:
        A new Functional model with the same weights, nested models included; the new
        layers are named `<layer>_activation`.

    Raises:
        ConfigError: for a subclassed model.

    Example:
        >>> import keras
        >>> net = keras.Sequential([
        ...     keras.Input((4,)),
        ...     keras.layers.Dense(3, activation="softmax", name="dense")])
        >>> [layer.name for layer in split_activations(net).layers[1:]]
        ['dense', 'dense_activation']
    """
    source = as_functional(model)
    if source is None:
        raise ConfigError(
            "split_activations takes a built Sequential or Functional model. Received: "
            f"{model!r}. The calls inside a subclassed model cannot be changed from "
            "outside: write its activations as layers."
        )
    names = Names(layer.name for layer in layers_below(source))
    pieces: dict[int, _Make] = {}
    for _, layer, parents in walk(source):
        if _ends_apart(layer) and reaches(parents):
            pieces[id(layer)] = functools.partial(_with_activation, layer, names)
    return rebuilt(source, pieces)


def in_parts(node: Node, names: Names, normal: Callable[[Any], Any]) -> _Make | None:
    """What makes the layers in place of one that takes one tensor; None to leave it.

    Args:
        node: a call of it.
        names: for the new layers.
        normal: brings a model into normal form.
    """
    layer = node.operation
    if (make := normalization(node, normal)) is not None:
        return make
    if _ends_apart(layer):
        return functools.partial(_with_activation, layer, names)
    if calls_like(layer, SqueezeExcitation):
        return functools.partial(_opened, node, normal)
    if not is_rewritten(layer):
        return None
    if isinstance(layer, layers.Average):
        return functools.partial(_average, layer, len(node.inputs), names)
    if isinstance(layer, layers.Activation):
        return functools.partial(_hard_sigmoid, layer.name, names)
    kind = next((k for k in _DEPTHWISE if isinstance(layer, k)), None)
    if kind is None or not calls_like(layer, kind) or layer.padding == "causal":
        return None
    return functools.partial(_separable, layer, kind, names)


def _ends_apart(layer: Any) -> bool:
    fused = activation_name(layer) in FUSED_ACTIVATIONS
    return isinstance(layer, LINEAR) and not fused


def _with_activation(layer: Any, names: Names) -> list[Piece]:
    return [
        (like(layer, activation="linear"), layer.get_weights()),
        *_activation(layer.activation, f"{layer.name}_activation", names),
    ]


def _activation(function: Any, name: str, names: Names) -> list[Piece]:
    made = layers.Activation(function, name=names.new(name))
    if is_rewritten(made):
        return _hard_sigmoid(made.name, names)
    return [(made, [])]


def _hard_sigmoid(name: str, names: Names) -> list[Piece]:
    """relu6(x + 3) / 6, of which each part is one int8 operation."""
    return [
        (layers.Rescaling(1.0, 3.0, name=name), []),
        (layers.ReLU(6.0, name=names.new(f"{name}_relu6")), []),
        (layers.Rescaling(1 / 6, name=names.new(f"{name}_scale")), []),
    ]


def _average(layer: Any, count: int, names: Names) -> list[Piece]:
    """A sum, and the division by its number of terms."""
    scale = layers.Rescaling(1 / count, name=names.new(f"{layer.name}_scale"))
    return [(layers.Add(name=layer.name), []), (scale, [])]


def _separable(layer: Any, kind: Any, names: Names) -> list[Piece]:
    """The depthwise convolution, without bias, and the one that mixes the channels."""
    depthwise, pointwise = _DEPTHWISE[kind]
    common = {"data_format": layer.data_format, "trainable": layer.trainable}
    first = depthwise(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        depth_multiplier=layer.depth_multiplier,
        use_bias=False,
        depthwise_initializer=layer.depthwise_initializer,
        depthwise_regularizer=layer.depthwise_regularizer,
        depthwise_constraint=layer.depthwise_constraint,
        name=names.new(f"{layer.name}_depthwise"),
        **common,
    )
    fused = activation_name(layer) in FUSED_ACTIVATIONS
    second = pointwise(
        layer.filters,
        1,
        activation=layer.activation if fused else None,
        use_bias=layer.use_bias,
        kernel_initializer=layer.pointwise_initializer,
        kernel_regularizer=layer.pointwise_regularizer,
        kernel_constraint=layer.pointwise_constraint,
        bias_initializer=layer.bias_initializer,
        bias_regularizer=layer.bias_regularizer,
        bias_constraint=layer.bias_constraint,
        name=layer.name,
        **common,
    )
    weights = [to_numpy(layer.pointwise_kernel)]
    weights += [to_numpy(layer.bias)] if layer.use_bias else []
    made = [(first, [to_numpy(layer.depthwise_kernel)]), (second, weights)]
    if not fused:
        made += _activation(layer.activation, f"{layer.name}_activation", names)
    return made


def _opened(node: Node, normal: Callable[[Any], Any]) -> list[Piece]:
    """A layer of layers as the model of its parts; its weights keep their paths."""
    layer = node.operation
    copy = like(layer)
    shape = node.inputs[0].shape
    copy.build(shape)
    copy.set_weights(layer.get_weights())
    model = model_of_parts(copy, shape)
    model.trainable = layer.trainable
    return [(normal(model), [])]


def joined_in_parts(node: Node, normal: Callable[[Any], Any]) -> _Make | None:
    """What makes the layers in place of one that takes several tensors, each once.

    Args:
        node: a call of it.
        normal: brings a model into normal form.
    """
    layer = node.operation
    if type(layer) is _compat.ScaledSum and len(node.inputs) == 2:
        return functools.partial(_scaled_sum, node, normal)
    return attention(node, normal)


def _scaled_sum(node: Node, normal: Callable[[Any], Any]) -> list[Piece]:
    """Inception-ResNet's x + y * scale."""
    layer = node.operation
    given = [keras.Input(batch_shape=t.shape) for t in node.inputs]
    scaled = layers.Rescaling(layer.scale, name="scale")(given[1])
    ends = layers.Add(name="sum")([given[0], scaled])
    made = keras.Model(given, ends, name=layer.name)
    return [(normal(made), [])]
