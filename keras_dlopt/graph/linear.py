"""Layers that multiply with a kernel: finding them, watching what they compute."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.graph import hooks
from keras_dlopt.graph.targets import Target, weight_targets
from keras_dlopt.graph.trace import Trace
from keras_dlopt.int8.placement import KEEPS_RANGE, LINEAR
from keras_dlopt.transforms import TransformedModel
from keras_dlopt.transforms.quantize.layout import channel_axes


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


Moments = tuple[np.ndarray, np.ndarray]


@contextlib.contextmanager
def without_activation(layer: Any) -> Iterator[None]:
    """Inside, the layer ends after its bias."""
    before = layer.activation
    layer.activation = None
    try:
        yield
    finally:
        layer.activation = before


def watch(
    model: Any,
    batches: Any,
    layers: list[Any],
    note: Callable[[int, Any, Any], None],
) -> None:
    """Runs a model and tells what its layers take and compute before activation.

    Args:
        model: a Keras model, or a `TransformedModel` to run it quantized.
        batches: of its inputs.
        layers: those to watch.
        note: called with the number of the layer, its input and its output without the
            activation, both tensors.
    """
    hooks.install(layers)

    def watcher(number: int) -> Callable[..., None]:
        layer = layers[number]

        def see(call, args, kwargs, outputs):
            if getattr(layer, "activation", None) not in (None, _IDENTITY):
                with without_activation(layer):
                    outputs = call(*args, **kwargs)
            note(number, args[0], outputs)

        return see

    seen = {id(layer): watcher(i) for i, layer in enumerate(layers)}
    for batch in batches:
        with hooks.watched(seen):
            model(batch, training=False)


_IDENTITY = keras.activations.linear


def channel_moments(model: Any, batches: Any, layers: list[Any]) -> list[Moments]:
    """Mean and standard deviation of each layer's channels, before its activation."""
    sums: list[Any] = [0.0] * len(layers)
    squares: list[Any] = [0.0] * len(layers)
    counts = [0] * len(layers)

    def note(i, _, outputs):
        array = np.asarray(ops.convert_to_numpy(outputs), "float64")
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


def fused_normalization(graph: Trace, layer: Any) -> Any:
    """The BatchNormalization of channels that alone takes what the layer makes.

    None if there is none, or if it takes something else as well.
    """
    calls = [c for c in graph.calls if c.layer is layer]
    following = graph.only_consumer(calls[0].outputs[0]) if len(calls) == 1 else None
    after = None if following is None else following.layer
    if not isinstance(after, keras.layers.BatchNormalization):
        return None
    if sum(c.layer is after for c in graph.calls) != 1:
        return None
    return after if after.axis in (-1, after.input_spec.ndim - 1) else None


def by_channel(target: Target, kernel: np.ndarray) -> np.ndarray:
    """A kernel as (output channels, rest)."""
    axes = channel_axes(target, kernel.ndim)
    moved = np.moveaxis(kernel, axes, range(len(axes)))
    return moved.reshape(int(np.prod(moved.shape[: len(axes)])), -1)


def inner(model: Any) -> Any:
    """The user's model in a `TransformedModel`; else the model."""
    return model.model if isinstance(model, TransformedModel) else model


__all__ = ["KEEPS_RANGE", "Linear", "by_channel", "channel_moments", "watch"]
