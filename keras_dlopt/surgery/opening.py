"""Blocks and models written as one layer, opened into the layers they consist of."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.copying import copy_model, reason
from keras_dlopt.graph.opening import seen_through
from keras_dlopt.graph.rebuilding import rebuilt
from keras_dlopt.graph.symbolic import graph_of, known_kind, nodes
from keras_dlopt.graph.trace import input_specs
from keras_dlopt.graph.walk import layers_below
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.surgery.rules import RULES
from keras_dlopt.surgery.survey import consists_of_layers


def opened(model: keras.Model, *, example: Any = None) -> keras.Model:
    """The same function as a Functional model that shows what its blocks consist of.

    A layer of your own, or of another package, whose `call` consists of other layers
    and `keras.ops` is replaced by these, at any depth, and so is a subclassed model
    inside another one: surgery then sees their channels. A layer stays as it is if it
    has weights of its own, does something else in training, or its `call` does not
    work on symbolic tensors. Inner layers get the names of what they were in as a
    prefix: `block` with `conv` becomes `block_conv`.

    Args:
        model: a built model that can be copied from its config; it is not changed.
        example: a batch of inputs, for models that do not know their input's shape. The
            opened model is compared with the old one on it, or on random numbers.

    Raises:
        ModelError: for a model that is not built, cannot be copied or traced, or whose
            opened form has other outputs or losses.

    Example:
        >>> from keras_dlopt.layers import BasicBlock
        >>> net = keras.Sequential([keras.Input((8, 8, 4)), BasicBlock(4, name="one")])
        >>> [layer.name for layer in opened(net).layers][1:4]
        ['one_conv1', 'one_bn1', 'one_relu1']
    """
    specs = input_specs(model, example)
    twin = copy_model(model)
    graph = seen_through(twin, _worth_opening(twin), specs)
    new = rebuilt(graph, _nothing_done(graph))
    _compare(model, new, specs if example is None else None, example)
    if model.compiled:
        new.compile_from_config(model.get_compile_config())
    return new


def _worth_opening(model: Any) -> list[Any]:
    """Layers to look into: blocks, and graphs around them."""
    below = layers_below(model)
    blocks = {id(layer) for layer in below if _is_block(layer)}
    return [
        layer
        for layer in below
        if id(layer) in blocks
        or (
            graph_of(layer) is not None
            and any(id(inner) in blocks for inner in layers_below(layer))
        )
    ]


def _is_block(layer: Any) -> bool:
    if graph_of(layer) is not None or known_kind(layer, RULES) is not None:
        return False
    return consists_of_layers(layer)


def _nothing_done(graph: Any) -> dict[int, Any]:
    """Conversions that models begin with, to be left out."""
    return {
        id(node.operation): list
        for node in nodes(graph)
        if _compat.operation_name(node.operation) == "ConvertToTensor"
        and node.inputs[0].dtype == node.outputs[0].dtype
    }


def _compare(old: Any, new: Any, specs: Any, example: Any) -> None:
    """Refuses a model that computes something else on one batch."""
    x = example if specs is None else keras.tree.map_structure(_drawn, specs)
    try:
        before = old(x, training=False)
    except Exception as error:
        raise ModelError(
            f"{old.name!r} does not run on random inputs, so it cannot be told whether "
            f"its opened form computes the same ({reason(error)}). "
            "Give example=, a batch of inputs."
        ) from error
    after, worst = new(x, training=False), 0.0
    for one, other in zip(_numbers(before), _numbers(after), strict=True):
        scale = max(np.abs(one).max(initial=0), 1e-6)
        worst = max(worst, np.abs(one - other).max(initial=0) / scale)
    if not worst < 1e-4 or len(old.losses) != len(new.losses):
        raise ModelError(
            f"{old.name!r} opened computes something else: outputs differ by "
            f"{worst:.2g} of the largest, {len(new.losses)} losses in place of "
            f"{len(old.losses)}. A call() with state beside weights cannot be opened. "
            "Write it with layers and weights, or prune around it."
        )


def _numbers(outputs: Any) -> Iterable[np.ndarray]:
    return [to_numpy(one).astype("float64") for one in keras.tree.flatten(outputs)]


def _drawn(spec: Any) -> Any:
    shape = [n or 2 for n in spec.shape]
    rng = np.random.default_rng(0)
    if keras.backend.is_float_dtype(spec.dtype):
        return keras.ops.convert_to_tensor(rng.normal(size=shape), dtype=spec.dtype)
    return keras.ops.zeros(shape, dtype=spec.dtype)
