"""The graph of a model as Keras recorded it: operations, arguments, symbolic tensors.

Unlike `trace`, which runs the model, it knows the constants that operations are called
with and runs nothing; it serves what can be built anew.
"""

import dataclasses
import functools
import inspect
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.copying import reason
from keras_dlopt.graph.trace import input_specs
from keras_dlopt.graph.walk import as_functional, check_built, is_functional


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of a layer or operation in a Functional model.

    Attributes:
        operation: the layer, model or operation between layers.
        args: what it was called with by position, constants among them.
        kwargs: what it was called with by name.
        inputs: the symbolic tensors among these, flat.
        outputs: the symbolic tensors it made, flat.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Any]
    outputs: list[Any]


def nodes(model: Any) -> list[Node]:
    """The calls inside a Functional model, makers before takers.

    Nested models are one call. `Input` layers take nothing.
    """
    return [Node(*parts) for parts in _compat.graph_nodes(model)]


def arguments_by_name(node: Node) -> dict[str, Any]:
    """What a layer was called with, by the names that its `call` has for it."""
    call = inspect.signature(type(node.operation).call)
    given = dict(call.bind(None, *node.args, **node.kwargs).arguments)
    del given["self"]
    return given


def functional_twin(model: Any, example: Any = None) -> keras.Model:
    """A model as a Functional one on the same layers.

    Args:
        model: a built model. A subclassed one is called once on symbolic tensors.
        example: a batch of inputs, for models that do not know their input's shape.

    Raises:
        ModelError: for a model that is not built, or whose `call` does not work on
            symbolic tensors.
    """
    check_built(model)
    known = graph_of(model)
    if known is not None:
        return known
    return _traced(model, example, {})


def graph_in_both_modes(model: Any) -> keras.Model:
    """A model as a Functional one on the same layers, which also trains as it does.

    Args:
        model: a built model. The `call` of a subclassed one is run on symbolic tensors,
            once in training and once as its layers are told.

    Raises:
        ModelError: for one whose `call` does not work on symbolic tensors, or does
            something else in training than its layers do by themselves.
    """
    known = graph_of(model)
    if known is not None:
        return known
    takes = "training" in inspect.signature(type(model).call).parameters
    modes = [{"training": t} if takes else {} for t in (None, True)]
    found = [_traced(model, None, mode) for mode in modes]
    kinds = [[_kind(node) for node in nodes(one)] for one in found]
    if takes and kinds[0] != kinds[1]:
        raise ModelError(
            f"{type(model).__name__} does something else in training than outside of "
            "it, beside what its layers do, and a graph of its layers would not. Write "
            "the branch as a layer that looks at training itself."
        )
    return found[0]


def _kind(node: Node) -> Any:
    one = node.operation
    layer = isinstance(one, keras.layers.Layer)
    return id(one) if layer and one.weights else type(one)


def _traced(model: Any, example: Any, options: dict[str, Any]) -> keras.Model:
    """What the `call` of a model does with symbolic tensors."""
    given = keras.tree.map_structure(
        lambda spec: keras.Input(batch_shape=spec.shape, dtype=spec.dtype),
        input_specs(model, example),
    )
    try:
        outputs = type(model).call(model, given, **options)
        return keras.Model(given, outputs, name=model.name)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be traced into a graph of layers: its "
            f"call() fails on symbolic tensors ({reason(error)}). Write call() with "
            "layers and keras.ops only and without a branch on values, or build the "
            "model as a Functional one."
        ) from error


def model_of_parts(layer: Any, shape: tuple[int | None, ...]) -> keras.Model:
    """What the `call` of a layer of layers does, as a Functional model on its layers.

    Args:
        layer: a built layer that takes one tensor; the model has its name.
        shape: of the tensor, the batch first.
    """
    inputs = keras.Input(batch_shape=shape)
    return keras.Model(inputs, layer.call(inputs), name=layer.name)


def graph_of(layer: Any) -> keras.Model | None:
    """The Functional model that a layer computes as; None if it is no such model.

    Sequential models and Functional ones without a `call` of their own are.
    """
    if not is_functional(layer) or type(layer).call not in _calls_of_graphs():
        return None
    return as_functional(layer)


@functools.cache
def _calls_of_graphs() -> tuple[Any, ...]:
    empty = keras.Input((), name="nothing")
    functional = type(keras.Model(empty, empty, name="nothing"))
    return functional.call, keras.Sequential.call


# What a class may define anew and still compute as the class that it is made from.
_HARMLESS = frozenset(["__init__", "build", "compute_output_shape", "get_config"])


def known_kind(layer: Any, kinds: Any) -> type | None:
    """The class of these that a layer computes as; None if it has a way of its own.

    Args:
        layer: any layer. One with a `call` of its own, of its class or its instance, or
            of a class that replaces anything that the known one computes with, is not
            known.
        kinds: classes, such as the keys of a table of rules.
    """
    if _compat.instance_call(layer) is not None:
        return None
    kind: Any
    changed: set[str] = set()
    for kind in type(layer).__mro__:
        if kind in kinds:
            replaced = {name for name in changed if hasattr(kind, name)}
            return None if replaced - _HARMLESS else kind
        changed |= {name for name in vars(kind) if not _is_of_python(name)}
    return None


def _is_of_python(name: str) -> bool:
    """Whether Python itself gives a class an attribute of this name."""
    return name.startswith("__") and name.endswith("__") and name != "__call__"
