"""A new head on any model: the features stay, the labels are others."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.adapt.labels import Labels
from keras_dlopt.adapt.places import layer_at, near
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.copying import copy_model, reason
from keras_dlopt.graph.rebuilding import rebuilt
from keras_dlopt.graph.symbolic import graph_in_both_modes, nodes
from keras_dlopt.graph.walk import check_built, is_functional, layers_below
from keras_dlopt.transforms.updating import hosts

L = keras.layers
_POOLING = {3: "GlobalAveragePooling1D", 4: "GlobalAveragePooling2D"}
_POOLING |= {5: "GlobalAveragePooling3D"}


def new_head(
    model: keras.Model,
    head: int | Labels | keras.layers.Layer,
    *,
    at: str | None = None,
    name: str = "head",
) -> keras.Model:
    """A copy of a model with another head on its features.

    Without `at` the old head is found: the dense layer (or 1x1 convolution) at the end,
    with what follows it. A model without one, such as `keras.applications` with
    `include_top=False`, keeps all its layers. Maps and sequences are averaged over
    their places.

    Args:
        model: a built model: Sequential, Functional, nested, or subclassed with a
            `call` of layers and `keras.ops`; it stays as it is.
        head: number of classes or the `Labels`, for a dense layer of logits; or a layer
            or model that takes the features as they are, averaged only by itself.
        at: path of the layer whose output is the features, such as `"block5/pool"`;
            of a model with several outputs in a dict, the name of one.
        name: of the dense layer.

    Returns:
        A model that is not compiled: Sequential if `model` is, else Functional. Layers
        inside keep their names and paths.

    Raises:
        ConfigError: for an unknown layer, with the nearest ones; for several outputs
            without `at`; for a head that does not take the features.
        ModelError: for a model that is not built, cannot be copied or traced, branches
            on `training` itself, or is transformed.

    Example:
        >>> net = keras.applications.MobileNetV2(
        ...     (32, 32, 3), alpha=0.35, weights=None, classes=7)
        >>> new_head(net, 3).output_shape
        (None, 3)
    """
    check_built(model)
    if hosts(model):
        raise ModelError(
            f"{model.name!r} is transformed, and a new head would stand outside of its "
            "transforms. Put the head on finalize(model), or on the model before "
            "transform()."
        )
    layer = _made(head, name)
    twin = copy_model(model)
    line = isinstance(twin, keras.Sequential)
    body, features = _body(graph_in_both_modes(twin), at)
    parts = [layer]
    pooling = _POOLING.get(len(features.shape))
    if pooling and not isinstance(head, L.Layer):
        parts.insert(0, getattr(L, pooling)(name=f"{name}_pooling"))
    try:
        outputs = features
        for part in parts:
            outputs = part(outputs)
    except Exception as error:
        raise ConfigError(
            f"The head {layer.name!r} does not take the features of {model.name!r}, "
            f"which have the shape {tuple(features.shape)} ({reason(error)}). Give a "
            "number of classes, or another layer at=."
        ) from error
    full = keras.Model(body.input, outputs, name=model.name)
    return _as_line(full, twin) if line else full


def _made(head: Any, name: str) -> Any:
    if isinstance(head, keras.layers.Layer):
        return head
    if isinstance(head, Labels):
        head = len(head.classes)
    classes = checks.count(
        head,
        name="head",
        hint="It is the number of classes, the Labels, or a layer.",
    )
    return L.Dense(classes, name=name)


def _body(graph: Any, at: str | None) -> tuple[Any, Any]:
    """The model up to the features, and their tensor."""
    if at is not None and isinstance(graph.output, dict) and at in graph.output:
        return graph, graph.output[at]
    if at is not None:
        around = layer_at(graph, at)
        return _cut(graph, around[1:], None)
    if len(graph.outputs) > 1:
        names = list(graph.output) if isinstance(graph.output, dict) else ["..."]
        raise ConfigError(
            f"{graph.name!r} has {len(graph.outputs)} outputs. Give at=, the name of "
            f"one or the path of a layer. {near('', names)}"
        )
    path, tensor = _old_head(graph)
    return (graph, graph.outputs[0]) if tensor is None else _cut(graph, path, tensor)


def _cut(graph: Any, path: Sequence[Any], tensor: Any) -> tuple[Any, Any]:
    """The graph up to a layer at any depth, or to a tensor in the last model of it."""
    if not path:
        return keras.Model(graph.input, tensor, name=graph.name), tensor
    layer, *rest = path
    made = [node.outputs for node in nodes(graph) if node.operation is layer]
    ends = made[-1][0] if len(made[-1]) == 1 else made[-1]
    whole = keras.Model(graph.input, ends, name=graph.name)
    if not rest and tensor is None:
        if len(made[-1]) > 1:
            raise ConfigError(
                f"The layer {layer.name!r} has {len(made[-1])} outputs. Give at= a "
                "layer with one."
            )
        return whole, made[-1][0]
    if not is_functional(layer):
        raise ConfigError(
            f"{layer.name!r} is a {type(layer).__name__}, whose inside is no graph. "
            "Give at= the layer itself or one before it."
        )
    inner, _ = _cut(graph_in_both_modes(layer), rest, tensor)
    whole = rebuilt(whole, {id(layer): lambda: [(inner, inner.get_weights())]})
    return whole, whole.outputs[0]


def _old_head(graph: Any) -> tuple[list[Any], Any]:
    """Nested models on the way to the old head, and what it takes; None without one."""
    made = {id(t): node for node in nodes(graph) for t in node.outputs}
    tensor = graph.outputs[0]
    while id(tensor) in made:
        node = made[id(tensor)]
        layer = node.operation
        if len(node.inputs) != 1:
            return [], None
        if is_functional(layer) and layers_below(layer):
            path, inner = _old_head(graph_in_both_modes(layer))
            return [layer, *path], inner
        if getattr(layer, "weights", None):
            ends = _is_head(layer, node.outputs[0], graph.outputs[0])
            return [], node.inputs[0] if ends else None
        tensor = node.inputs[0]
    return [], None


def _is_head(layer: Any, made: Any, outputs: Any) -> bool:
    """Whether a layer gives a number a class: dense, or a convolution of one place."""
    if len(outputs.shape) != 2:
        return False
    if isinstance(layer, L.Dense):
        return len(made.shape) == 2
    convolution = isinstance(layer, L.Conv1D | L.Conv2D | L.Conv3D)
    return convolution and all(n == 1 for n in made.shape[1:-1])


def _as_line(full: Any, twin: Any) -> Any:
    """A Sequential model of the layers of a graph that is a line, if it is one."""
    steps = [n.operation for n in nodes(full)]
    layers = [s for s in steps if not isinstance(s, L.InputLayer)]
    if not all(isinstance(s, L.Layer) for s in layers):
        return full
    given = twin.inputs[0]
    start = keras.Input(batch_shape=given.shape, dtype=given.dtype, name=given.name)
    return keras.Sequential([start, *layers], name=twin.name)
