"""Blocks and models written as one layer, opened into the layers they consist of."""

import functools
import inspect
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.copying import copy_model, reason
from keras_dlopt.graph.rebuilding import rebuilt
from keras_dlopt.graph.symbolic import graph_of, known_kind, nodes
from keras_dlopt.graph.trace import input_specs
from keras_dlopt.graph.walk import children, layers_below
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.surgery.rules import RULES


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
    through = _worth_opening(twin)
    _rename(twin, {id(layer) for layer in through})
    given = keras.tree.map_structure(
        lambda spec: keras.Input(batch_shape=spec.shape, dtype=spec.dtype), specs
    )
    with _compat.called_through(through, _Through()):
        try:
            graph = keras.Model(given, twin.call(given), name=model.name)
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} cannot be opened: its call() fails on "
                f"symbolic tensors ({reason(error)}). Write call() with layers and "
                "keras.ops only and without a branch on values."
            ) from error
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
    if type(layer).__module__.startswith("keras.src.layers"):
        return False
    inner = {id(v) for sub in children(layer) for v in sub.variables}
    return all(id(v) in inner for v in layer.variables)


def _nothing_done(graph: Any) -> dict[int, Any]:
    """Conversions that models begin with, to be left out."""
    return {
        id(node.operation): list
        for node in nodes(graph)
        if _compat.operation_name(node.operation) == "ConvertToTensor"
        and node.inputs[0].dtype == node.outputs[0].dtype
    }


def _rename(model: Any, through: set[int]) -> None:
    """Gives layers that come to stand side by side names of their own."""
    names: set[str] = set()

    def visit(layer: Any, prefix: str, seen: set[int]) -> None:
        for child in children(layer):
            if id(child) in seen:
                continue
            seen.add(id(child))
            name = plain = f"{prefix}{child.name}"
            number = 1
            while name in names:
                name, number = f"{plain}_{number}", number + 1
            names.add(name)
            child.name = name
            if id(child) in through:
                visit(child, f"{name}_", seen)

    visit(model, "", {id(model)})


class _Through:
    """A symbolic call that records what is inside, where that is all there is."""

    def __init__(self):
        self._tries = False

    def __call__(self, layer: Any, own: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if not self._tries and not self._same_in_training(layer, args, kwargs):
                return own(*args, **kwargs)
            return layer.call(*args, **kwargs)
        except Exception:  # whatever it does there, it does not work on symbols
            if self._tries:
                raise
            return own(*args, **kwargs)

    def _same_in_training(self, layer: Any, args: Any, kwargs: Any) -> bool:
        if "training" not in inspect.signature(layer.call).parameters:
            return True
        self._tries = True
        try:
            kinds = functools.partial(_kinds, layer, args, kwargs)
            return kinds(training=True) == kinds(training=False)
        finally:
            self._tries = False


def _kinds(layer: Any, args: Any, kwargs: Any, *, training: bool) -> list[Any]:
    """What a call consists of: the layers themselves, and classes of operations."""
    fresh: dict[int, Any] = {}

    def symbol(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor):
            return value
        new = keras.Input(batch_shape=value.shape, dtype=value.dtype)
        return fresh.setdefault(id(value), new)

    args, kwargs = keras.tree.map_structure(symbol, (args, kwargs))
    made = layer.call(*args, **{**kwargs, "training": training})
    graph = keras.Model([*fresh.values()], made)
    found = (node.operation for node in nodes(graph))
    return [
        id(one) if isinstance(one, keras.layers.Layer) else type(one)
        for one in found
        if not isinstance(one, keras.layers.InputLayer)
    ]


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
            f"{len(old.losses)}. A call() with state beside weights cannot be opened: "
            "write it with layers and weights, or prune around it."
        )


def _numbers(outputs: Any) -> Iterable[np.ndarray]:
    return [to_numpy(one).astype("float64") for one in keras.tree.flatten(outputs)]


def _drawn(spec: Any) -> Any:
    shape = [n or 2 for n in spec.shape]
    rng = np.random.default_rng(0)
    if keras.backend.is_float_dtype(spec.dtype):
        return keras.ops.convert_to_tensor(rng.normal(size=shape), dtype=spec.dtype)
    return keras.ops.zeros(shape, dtype=spec.dtype)
