"""Layers that multiply with a kernel: finding them, watching what they compute."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import _compat
from keras_dlopt.graph import hooks
from keras_dlopt.graph.channels import tensor_axis
from keras_dlopt.graph.kinds import LINEAR, ends_linear
from keras_dlopt.graph.targets import Target, weight_targets
from keras_dlopt.graph.trace import Call, Trace


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """A convolution or dense layer.

    Attributes:
        path: of the layer.
        layer: the layer.
        target: of its kernel.
    """

    path: str
    layer: Any
    target: Target


def linear_layers(model: Any, graph: Trace) -> list[Linear]:
    """The convolution and dense layers of a model, in the order of their calls."""
    kernels = {id(t.layer): t for t in weight_targets(model) if t.name == "kernel"}
    found: dict[int, Linear] = {}
    for call in graph.calls:
        target = kernels.get(id(call.layer))
        if target is not None and isinstance(call.layer, LINEAR):
            found.setdefault(id(call.layer), Linear(call.path, call.layer, target))
    return list(found.values())


def sole_follower(graph: Trace, layer: Any) -> Call | None:
    """The call that alone takes what the only call of a layer makes, if so."""
    calls = graph.sites(layer)
    return graph.only_consumer(calls[0].outputs[0]) if len(calls) == 1 else None


def fused_normalization(graph: Trace, layer: Any) -> Any:
    """The BatchNormalization of channels that alone takes what the layer makes.

    None if there is none, or if it takes something else as well.
    """
    following = sole_follower(graph, layer)
    after = None if following is None else following.layer
    if not isinstance(after, keras.layers.BatchNormalization):
        return None
    if len(graph.sites(after)) != 1:
        return None
    return after if after.axis in (-1, after.input_spec.ndim - 1) else None


Moments = tuple[np.ndarray, np.ndarray]
Note = Callable[[int, Any, Any], None]


def watch(model: Any, batches: Any, layers: list[Any], note: Note) -> None:
    """Runs a model and tells what its layers take and compute before activation.

    Args:
        model: a Keras model, or a `TransformedModel` to run it quantized.
        batches: of its inputs.
        layers: those to watch.
        note: called with the number of the layer, its input and its output without the
            activation, both tensors.
    """

    def watcher(number: int) -> hooks.Hook:
        layer = layers[number]

        def see(call: hooks.Called, given: hooks.Given) -> Any:
            outputs = bare = call(given)
            if not ends_linear(layer):
                with _compat.changed(layer, activation=None):
                    bare = call(given)
            note(number, given.inputs()[0], bare)
            return outputs

        return see

    with hooks.hooked((layer, watcher(i)) for i, layer in enumerate(layers)):
        for batch in batches:
            model(batch, training=False)


def channel_moments(model: Any, batches: Any, layers: list[Any]) -> list[Moments]:
    """Mean and standard deviation of each layer's channels, before its activation."""
    sums: list[Any] = [0.0] * len(layers)
    squares: list[Any] = [0.0] * len(layers)
    counts = [0] * len(layers)

    def note(i: int, _: Any, outputs: Any) -> None:
        array = np.asarray(ops.convert_to_numpy(outputs), "float64")
        array = np.moveaxis(array, tensor_axis(layers[i]), -1)
        rows = array.reshape(-1, array.shape[-1])
        sums[i] = sums[i] + rows.sum(axis=0)
        squares[i] = squares[i] + np.square(rows).sum(axis=0)
        counts[i] += len(rows)

    watch(model, batches, layers, note)
    found = []
    for total, square, count in zip(sums, squares, counts, strict=True):
        mean = np.asarray(total / count)
        variance = np.maximum(square / count - np.square(mean), 0.0)
        found.append((mean, np.sqrt(variance)))
    return found
