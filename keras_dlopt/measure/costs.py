"""What a model costs: parameters, multiply-accumulates, memory, layer by layer."""

import dataclasses
from typing import Any

import keras

from keras_dlopt.errors import ModelError
from keras_dlopt.graph.kinds import LOOPS
from keras_dlopt.graph.trace import Call, Trace, input_specs, trace, trace_call
from keras_dlopt.graph.walk import own_weights
from keras_dlopt.measure import memory
from keras_dlopt.measure.products import Shape, of_layer, of_operation


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """What one layer, or one operation between layers, costs.

    Attributes:
        path: of the layer.
        kind: name of its class.
        macs: multiply-accumulates of all its calls, for one example.
        parameters: elements of its own weights.
        bytes: of its own weights.
        shape: of the output of its last call, without the batch.
    """

    path: str
    kind: str
    macs: int
    parameters: int
    bytes: int
    shape: Shape


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a model costs, for one example.

    Attributes:
        by_layer: in the order of their first calls.
        parameters: elements of all its weights, those of shared layers once.
        bytes: of them, in memory.
        peak: most bytes that tensors between layers take together.
        peak_at: path of the layer at which they do.
        uncounted: paths of the layers whose multiply-accumulates are not known: those
            of classes of your own, which may multiply inside `call`.
    """

    by_layer: tuple[LayerCost, ...]
    parameters: int
    bytes: int
    peak: int
    peak_at: str
    uncounted: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one example; at least these if some are uncounted."""
        return sum(layer.macs for layer in self.by_layer)

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each; nothing else is counted."""
        return 2 * self.macs


def costs(model: keras.Model, example: Any = None, *, graph: Any = None) -> Costs:
    """Counts parameters, multiply-accumulates and activation memory of a model.

    The model runs once on zeros, and each call is counted by the class of its layer and
    the shapes that it met. Convolutions (strides, groups, padding, transposed,
    depthwise, separable), dense and einsum layers, attention and recurrent layers are
    counted; activations, sums, pooling and normalization count as nothing. In
    subclassed models the layers are seen, operations between them are not.

    Args:
        model: a built Keras model; it stays as it is.
        example: a batch of inputs; needed where the model leaves a size open, such as
            the length of a sequence, since the figures depend on it.
        graph: the model's `trace`, where it is there already.

    Raises:
        ModelError: for a model that is not built, whose inputs are not known, or that
            leaves a size open.

    Example:
        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 3)),
        ...     keras.layers.Conv2D(4, 3, padding="same"),
        ...     keras.layers.GlobalAveragePooling2D(),
        ...     keras.layers.Dense(10)])
        >>> found = costs(model)
        >>> found.parameters, found.macs, found.peak, found.peak_at
        (162, 6952, 1792, 'conv2d')
    """
    check_sizes(model, example)
    graph = trace(model, example) if graph is None else graph
    calls = outside_loops(graph)
    found: dict[int, LayerCost] = {}
    uncounted: dict[str, None] = {}
    for call in calls:
        macs = _macs(call, graph)
        if macs is None:
            uncounted[call.path] = None
        known = found.get(id(call.layer))
        found[id(call.layer)] = _cost(call, graph, macs or 0, known)
    peak, peak_at = memory.of_trace(graph, calls)
    variables = {id(v): v for v in model.weights}.values()
    return Costs(
        by_layer=tuple(found.values()),
        parameters=sum(_elements(v) for v in variables),
        bytes=sum(_bytes(v) for v in variables),
        peak=peak,
        peak_at=peak_at,
        uncounted=tuple(uncounted),
    )


def check_sizes(model: Any, example: Any) -> None:
    """Raises `ModelError` if a size other than the batch is open."""
    specs = keras.tree.flatten(input_specs(model, example))
    open_ones = [tuple(s.shape) for s in specs if None in tuple(s.shape)[1:]]
    if open_ones:
        raise ModelError(
            f"{model.name!r} takes inputs of shape {open_ones[0]}, of any size, and "
            "what it costs depends on the size. Pass example=, a batch of the inputs "
            "that are meant."
        )


def outside_loops(graph: Trace) -> list[Call]:
    """The calls of a model without those inside recurrent and time-distributed ones."""
    loops = {c.path for c in graph.calls if _is_loop(c.layer)}
    if "" in loops:  # traced by itself
        return [call for call in graph.nodes if not call.path]
    return [
        call
        for call in graph.nodes
        if not any(call.path.startswith(f"{path}/") for path in loops)
    ]


def _is_loop(layer: Any) -> bool:
    # Bidirectional runs its two layers once each.
    return isinstance(layer, LOOPS) and not isinstance(
        layer, keras.layers.Bidirectional
    )


def _macs(call: Call, graph: Trace) -> int | None:
    """Of one call; the layers inside have calls of their own."""
    given = [graph.specs[t].shape for t in call.inputs]
    made = graph.specs[call.outputs[0]].shape if call.outputs else ()
    layer = call.layer
    if isinstance(layer, keras.layers.TimeDistributed):
        return _each_step(layer, given[0], graph.specs[call.inputs[0]].dtype)
    if not isinstance(layer, keras.layers.Layer):
        return of_operation(layer, given, made)
    macs = of_layer(layer, given, made)
    # A layer of layers is what those inside it are, but for kernels of its own.
    inside = macs is None and call.composite and not _kernels(layer)
    return 0 if inside else macs


def _each_step(layer: Any, shape: Shape, dtype: str) -> int | None:
    inner = trace_call(layer.layer, (shape[0], *shape[2:]), dtype)
    parts = [_macs(call, inner) for call in outside_loops(inner)]
    return None if None in parts else shape[1] * sum(p for p in parts if p is not None)


def _kernels(layer: Any) -> bool:
    return any(len(w.shape) > 1 for w in own_weights(layer))


def _cost(call: Call, graph: Trace, macs: int, known: LayerCost | None) -> LayerCost:
    shape = graph.specs[call.outputs[0]].shape[1:] if call.outputs else ()
    if known is not None:
        return dataclasses.replace(known, macs=known.macs + macs, shape=shape)
    is_layer = isinstance(call.layer, keras.layers.Layer)
    weights = _weights(call.layer) if is_layer else []
    return LayerCost(
        path=call.path,
        kind=type(call.layer).__name__,
        macs=macs,
        parameters=sum(_elements(w) for w in weights),
        bytes=sum(_bytes(w) for w in weights),
        shape=shape,
    )


def _weights(layer: Any) -> list[Any]:
    # The layers inside a loop have no calls of their own here.
    return list(layer.weights) if _is_loop(layer) else own_weights(layer)


def _elements(variable: Any) -> int:
    return memory.bytes_of(tuple(variable.shape), "int8")


def _bytes(variable: Any) -> int:
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return memory.bytes_of(tuple(variable.shape), dtype)
