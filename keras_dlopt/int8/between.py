"""Operations between layers, as layers."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import layers

from keras_dlopt import _compat
from keras_dlopt.graph.affine import Affine, affine
from keras_dlopt.graph.rebuilding import Piece
from keras_dlopt.graph.symbolic import Node
from keras_dlopt.graph.trace import Call, Trace
from keras_dlopt.layers import OperationLayer
from keras_dlopt.runtime.values import to_numpy

_JOINS = {
    "Add": layers.Add,
    "Maximum": layers.Maximum,
    "Minimum": layers.Minimum,
    "Multiply": layers.Multiply,
    "Subtract": layers.Subtract,
}
_ACTIVATIONS = {
    "Elu": "elu",
    "Exp": "exponential",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "Relu": "relu",
    "Relu6": "relu6",
    "Selu": "selu",
    "Sigmoid": "sigmoid",
    "Silu": "silu",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Tanh": "tanh",
}


def layer_of(node: Node, *, plain: bool) -> Callable[[], list[Piece]] | None:
    """What makes the layer in place of an operation; None to leave it.

    Operations on integers and conditions stay: int8 is not for them.

    Args:
        node: a call of the operation.
        plain: whether it must be an `OperationLayer`.
    """
    tensors = [*node.inputs, *node.outputs]
    if not all(keras.backend.is_float_dtype(t.dtype) for t in tensors):
        return None
    if not node.inputs:
        return None
    name = node.operation.name
    kind = None if plain else _compat.operation_name(node.operation)
    make: Callable[[], Any]
    if kind in _JOINS and _joins(node):
        make = functools.partial(_JOINS[kind], name=name)
    elif kind == "Concatenate" and _all_tensors(node.args[0]):
        make = functools.partial(
            layers.Concatenate, axis=node.operation.axis, name=name
        )
    elif kind in _ACTIVATIONS and _plain(node):
        make = functools.partial(layers.Activation, _ACTIVATIONS[kind], name=name)
    elif kind == "Softmax":
        make = functools.partial(layers.Softmax, axis=node.operation.axis, name=name)
    elif kind == "LeakyRelu":
        slope = node.operation.negative_slope
        make = functools.partial(layers.LeakyReLU, negative_slope=slope, name=name)
    elif kind == "Gelu" and not node.operation.approximate:
        make = functools.partial(layers.Activation, "gelu", name=name)
    else:
        make = functools.partial(
            OperationLayer.of, _again(node), node.args, node.kwargs, name=name
        )
    return lambda: [(make(), [])]


def _again(node: Node) -> Any:
    """The operation, free of the graph that it stands in."""
    operation = node.operation
    return type(operation).from_config(operation.get_config())


def _joins(node: Node) -> bool:
    """Whether a layer that joins two tensors computes the same as the operation.

    Of tensors of unequal ranks, layers align the first axes and operations the last.
    """
    if len(node.args) != 2 or not _all_tensors(node.args) or node.kwargs:
        return False
    one, two = node.args
    return len(one.shape) == len(two.shape) > 1 and one.shape[0] == two.shape[0]


def _all_tensors(given: Any) -> bool:
    return all(map(_is_symbolic, given))


def _plain(node: Node) -> bool:
    """Whether an activation has no arguments but their defaults."""
    given = node.operation.get_config().items() - {("name", node.operation.name)}
    usual = {("alpha", 1.0)} if type(node.operation).__name__ == "Elu" else set()
    return len(node.args) == 1 and not node.kwargs and set(given) <= usual


def scalings(
    graph: Trace, found: dict[int, Node]
) -> Iterator[tuple[list[Call], Any, Any]]:
    """Operations in a row that compute a x + b together, with a and b.

    Args:
        graph: of a model.
        found: id of an operation -> its node.
    """
    users: dict[int, list[Call]] = {}
    calls: dict[int, list[Call]] = {}
    graph = dataclasses.replace(
        graph, nodes=[_with_constants(c, found.get(id(c.layer))) for c in graph.nodes]
    )
    for call in graph.nodes:
        calls.setdefault(id(call.layer), []).append(call)
        for tensor in (*call.inputs, *call.aside):
            users.setdefault(tensor, []).append(call)
    done: set[int] = set()
    between = [c for c in graph.nodes if not isinstance(c.layer, layers.Layer)]
    for call in between:
        change = affine(call, graph)
        if change is None or id(call.layer) in done or not _by_last_axis(change, graph):
            continue
        row = [call]
        while len(calls[id(call.layer)]) == 1:
            (made,) = row[-1].outputs
            following = users.get(made, [])
            if made in graph.outputs or len(following) != 1:
                break
            after = following[0]
            more = None
            if after in between and len(calls[id(after.layer)]) == 1:
                more = affine(after, graph)
            both = more.after(change) if more is not None else None
            if both is None:
                break
            change, row = both, [*row, after]
        done |= {id(one.layer) for one in row}
        yield row, _plain_numbers(change.factor), _plain_numbers(change.offset)


def _with_constants(call: Call, node: Node | None) -> Call:
    """The call, told which of the tensors that it takes are constants."""
    if node is None or node.kwargs:
        return call
    given = [a for a in node.args if keras.ops.is_tensor(a) or _is_symbolic(a)]
    if len(given) != len(call.inputs):
        return call
    pairs = zip(call.inputs, given, strict=True)
    arguments = tuple(
        None if _is_symbolic(a) else to_numpy(a) if keras.ops.is_tensor(a) else a
        for a in node.args
    )
    moving = tuple(number for number, a in pairs if _is_symbolic(a))
    return dataclasses.replace(call, inputs=moving, arguments=arguments)


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _by_last_axis(change: Affine, graph: Trace) -> bool:
    """Whether a Rescaling layer multiplies the same axis."""
    first = keras.config.image_data_format() == "channels_first"
    return change.axis is None or not first


def _plain_numbers(values: Any) -> Any:
    return float(values[0]) if values.size == 1 else values.tolist()
