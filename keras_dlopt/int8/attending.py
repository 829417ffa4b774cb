"""Attention in parts that int8 has: products, a softmax, and places between them."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

from keras_dlopt.graph.kinds import calls_like
from keras_dlopt.graph.rebuilding import Piece, like
from keras_dlopt.graph.symbolic import Node, arguments_by_name
from keras_dlopt.runtime.values import to_numpy

_TAKEN = ("query", "value", "key")


def attention(node: Node, normal: Any) -> Callable[[], list[Piece]] | None:
    """What makes the parts of a MultiHeadAttention; None for one that stays.

        y = W_o (softmax((W_q q / sqrt(d)) (W_k k)^T) (W_v v))

    The scale goes into the kernel of the queries. Calls with masks, and those that
    return the scores, stay.

    Args:
        node: a call of the layer.
        normal: brings a model into normal form.
    """
    layer = node.operation
    if not calls_like(layer, layers.MultiHeadAttention) or not _is_plain(layer):
        return None
    given = _bound(node)
    if given is None:
        return None
    taken = _distinct(node.args, node.kwargs)
    return functools.partial(_made, layer, given, taken, normal)


def each_once(args: Any, kwargs: Any) -> Any:
    """The tensors of a call, each once: one, or a list of them."""
    given = _distinct(args, kwargs)
    return (given[0] if len(given) == 1 else given,), {}


def _distinct(args: Any, kwargs: Any) -> list[Any]:
    flat = keras.tree.flatten((args, kwargs))
    found = {id(t): t for t in flat if isinstance(t, keras.KerasTensor)}
    return list(found.values())


def _is_plain(layer: Any) -> bool:
    config = layer.get_config()
    axes = tuple(config.get("attention_axes") or (1,))
    more = config.get("use_gate") or config.get("sliding_window")
    return len(layer.query_dense.kernel.shape) == 3 and axes == (1,) and not more


def _bound(node: Node) -> dict[str, Any] | None:
    """The tensors of a call by name; None if it is given anything else."""
    given = arguments_by_name(node)
    tensors = {name: given.pop(name) for name in _TAKEN if given.get(name) is not None}
    given.pop("training", None)
    more = [value for value in given.values() if value is not None]
    plain = all(isinstance(t, keras.KerasTensor) for t in tensors.values())
    known = all(len(t.shape) == 3 and None not in t.shape[1:] for t in tensors.values())
    return (
        None
        if any(value is not False for value in more) or not (plain and known)
        else tensors
    )


def _made(layer: Any, given: dict[str, Any], taken: list[Any], normal: Any) -> Any:
    given = {"key": given["value"], **given}
    inputs = {id(t): keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in taken}
    query, value, key = (inputs[id(given[name])] for name in _TAKEN)
    scale = layer.get_config()["key_dim"] ** -0.5
    q = _heads(_projected(layer.query_dense, query, scale))
    k, v = _projected(layer.key_dense, key), _projected(layer.value_dense, value)
    scores = ops.matmul(q, ops.transpose(k, (0, 2, 3, 1)))
    shares = layers.Softmax(name="shares")(scores)
    if layer.dropout:
        shares = layers.Dropout(layer.dropout, name="dropout")(shares)
    mixed = _heads(ops.matmul(shares, _heads(v)))
    outputs = _projected(layer.output_dense, mixed)
    order = list(inputs.values())
    one = len(order) == 1
    model = keras.Model(order[0] if one else order, outputs, name=layer.name)
    model.trainable = layer.trainable
    return [(normal(model), [])]


def _heads(x: Any) -> Any:
    """(batch, places, heads, width) as (batch, heads, places, width), and back."""
    return ops.transpose(x, (0, 2, 1, 3))


def _projected(dense: Any, x: Any, scale: float = 1.0) -> Any:
    # Attention was built for any number of places; here it is known.
    shape = [x.shape[1], *dense.get_config()["output_shape"][1:]]
    copy = like(dense, output_shape=shape)
    made = copy(x)
    copy.set_weights([to_numpy(w) * scale for w in dense.weights])
    return made
