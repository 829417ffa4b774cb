"""Where quantizers belong so that LiteRT runs a model in int8 with the same numbers.

The rules, each of which mirrors what the converter fuses or shares:

- the model's input is quantized once;
- convolution or dense -> BatchNorm -> ReLU is one operation: one quantizer at its end;
- BatchNorm elsewhere is a depthwise convolution: what it takes is quantized;
- addition -> ReLU is one too, and each branch is quantized before it;
- concatenation shares one range with what goes into it: one quantizer, after it;
- max pooling, padding, cropping, slicing, reshaping and sampling up keep their
  input's range: none;
- what is only pooled by maximum is quantized after the pooling: the rounded maximum is
  the maximum of the rounded, and there are fewer values to round;
- pooling by average has a range of its own: one;
- sigmoid and softmax end in (0, 255/256), tanh in (-1, 127/128), LiteRT's fixed ranges;
- the model's output is quantized.

A layer that the rules do not know, such as an LSTM or a Conv3D, is taken as one
operation with a range of its own, and stays in float between the two: an island.
`Places.problems` names them. Nothing is placed inside recurrent layers: they run their
cells in a loop. Models in float16, bfloat16 or mixed precision have the places of their
float32 copies.

Source: LiteRT's 8-bit quantization specification.
"""

import dataclasses
from typing import Any

from keras import layers

from keras_dlopt.graph.kinds import (
    ACTIVATIONS,
    FIXED_RANGES,
    FUSED_ACTIVATIONS,
    FUSES_RELU,
    LINEAR,
    LOOPS,
    MAX_POOLING,
    PRODUCTS_WITHOUT_FUSION,
    activation_name,
    folds_by_shape,
    has_own_range,
    is_relu,
    is_rewritten,
    is_weighted,
    keeps_range,
    stays_float_inside,
)
from keras_dlopt.graph.trace import Call, Trace


@dataclasses.dataclass
class Places:
    """Paths of the quantizers, by kind.

    Attributes:
        inputs: where the model's inputs are taken.
        outputs: all others with a range to learn.
        fixed: range -> outputs that have it by nature.
        problems: what LiteRT computes in float, and what to do.
    """

    inputs: list[str] = dataclasses.field(default_factory=list)
    outputs: list[str] = dataclasses.field(default_factory=list)
    fixed: dict[tuple[float, float], list[str]] = dataclasses.field(
        default_factory=dict
    )
    problems: list[str] = dataclasses.field(default_factory=list)

    def add_output(self, call: Call, graph: Trace) -> None:
        """Quantizes what a call returns."""
        ends = FIXED_RANGES.get(activation_name(call.layer))
        paths = self.outputs if ends is None else self.fixed.setdefault(ends, [])
        paths.append(graph.place(call, "output"))

    def add_input(self, call: Call, graph: Trace) -> None:
        """Quantizes what a call takes."""
        if (path := graph.place(call, "input")) not in self.inputs:
            self.outputs.append(path)


def place(graph: Trace, *, after_pooling: bool = True) -> Places:
    """Decides for every tensor whether a quantizer follows it.

    Args:
        graph: the calls of a model's layers.
        after_pooling: False quantizes before max pooling, as elsewhere.
    """
    graph = _without_loops(graph)
    producers = graph.producers()
    places = Places()
    _place_inputs(places, graph)
    quantized = set(graph.inputs)
    for call in graph.calls:
        if not call.composite:
            _check_sources(places, call, graph, producers)
            _check_layer(places, call, graph)
        elif stays_float_inside(call.layer):
            text = _unknown(call, f"a {type(call.layer).__name__}")
            if isinstance(call.layer, layers.MultiHeadAttention):
                text += (
                    " int8.prepare(model) writes one that is called without masks with "
                    "layers that have one."
                )
            places.problems.append(text)
        made = [t for t in call.outputs if producers.get(t) is call]
        if not made or set(made) <= graph.integers:
            continue
        keeps = keeps_range(call.layer)
        if keeps and set(call.inputs) <= quantized:
            quantized.update(made)
            continue
        going = [n for t in made for n in _goes_on(call, t, graph)]
        pooled = any(isinstance(n.layer, MAX_POOLING) for n in going)
        if going and (after_pooling or not pooled):
            continue
        quantized.update(made)
        places.add_output(call, graph)
    _check_outputs(places, graph, producers)
    return places


def _without_loops(graph: Trace) -> Trace:
    """The trace with recurrent layers as one operation each."""
    loops = {c.path for c in graph.calls if isinstance(c.layer, LOOPS)}
    nodes = []
    for call in graph.nodes:
        if any(call.path.startswith(f"{path}/") for path in loops):
            continue
        if call.path in loops:
            call = dataclasses.replace(call, composite=False)
        nodes.append(call)
    return dataclasses.replace(graph, nodes=nodes)


def _place_inputs(places: Places, graph: Trace) -> None:
    """Finds where the model's inputs are taken: each such place quantizes them."""
    given = set(graph.inputs) - graph.integers
    takers = [c for c in graph.calls if set(c.inputs) & given]
    # A composite layer does so once for all layers inside it. What goes into a
    # concatenation is quantized by its output's range at once.
    outer = {c.path for c in takers if c.composite and len(c.inputs) == 1}
    for call in takers:
        inside = any(call.path.startswith(f"{path}/") for path in outer)
        if inside or isinstance(call.layer, layers.Concatenate):
            continue
        if call.composite and call.path not in outer:
            continue
        if len(set(call.inputs)) > 1:
            places.problems.append(
                f"{call.path!r} takes an input of the model together with other "
                "tensors, and they need ranges of their own. Put a layer between that "
                "keeps the values, such as keras.layers.Reshape(inputs.shape[1:])."
            )
        else:
            places.inputs.append(graph.place(call, "input"))


def _goes_on(call: Call, tensor: int, graph: Trace) -> list[Call]:
    """The one call that takes the tensor, if it belongs to the same operation."""
    following = graph.only_consumer(tensor)
    return [following] if following is not None and _fuses(call, following) else []


def _fuses(call: Call, following: Call) -> bool:
    if isinstance(following.layer, layers.Concatenate):
        return activation_name(call.layer) not in FIXED_RANGES
    if isinstance(following.layer, MAX_POOLING):
        fused = activation_name(call.layer) in FUSED_ACTIVATIONS
        return fused and isinstance(call.layer, (*LINEAR, layers.ReLU))
    if activation_name(call.layer) != "linear":
        return False
    if isinstance(following.layer, layers.BatchNormalization):
        return isinstance(call.layer, LINEAR) or is_weighted(call.layer)
    # A layer of layers that makes its own output ends in a sum.
    fuses = call.composite or isinstance(call.layer, FUSES_RELU)
    return (fuses or is_weighted(call.layer)) and is_relu(following.layer)


def _check_sources(
    places: Places, call: Call, graph: Trace, producers: dict[int, Call]
) -> None:
    """Notes a tensor that no layer made: only its taker can quantize it."""
    sources = set(call.inputs) - graph.integers
    if all(t in producers or t in graph.inputs for t in sources):
        return
    places.problems.append(f"{call.path!r} takes a tensor that {_NO_LAYER}")
    if len(sources) == 1 and is_weighted(call.layer):
        places.add_input(call, graph)


def _check_outputs(places: Places, graph: Trace, producers: dict[int, Call]) -> None:
    """Notes an output of the model that no layer made: nothing can quantize it."""
    made = {*producers, *graph.inputs, *graph.integers}
    if set(graph.outputs) - made:
        places.problems.append(f"The model returns a tensor that {_NO_LAYER}")


_NO_LAYER = (
    "no layer made, but an operation between layers (x + y, keras.ops). Quantizers "
    "sit at layers: use one for it, such as keras.layers.Add(). int8.prepare(model) "
    "does so in Sequential and Functional models."
)


def _check_layer(places: Places, call: Call, graph: Trace) -> None:
    """Notes where LiteRT would silently compute in float."""
    layer, activation = call.layer, activation_name(call.layer)
    problems = places.problems
    if isinstance(layer, layers.BatchNormalization):
        if not _folds(call, graph) and not folds_by_shape(layer):
            source = graph.producers().get(call.inputs[0])
            problems.append(
                f"{call.path!r} normalizes "
                f"{repr(source.path) if source else 'the input of the model'} along "
                f"axis {layer.axis}, and cannot be folded into it. In int8 a "
                "BatchNormalization of another axis than the last must directly follow "
                "a convolution or dense layer that has no activation and feeds nothing "
                "else."
            )
    elif is_rewritten(layer):
        problems.append(
            _unknown(call, f"a {type(layer).__name__}")
            + " int8.prepare(model) writes it with layers that have one; inside a "
            "block written as one layer, after surgery.opened(model)."
        )
    elif isinstance(layer, (*LINEAR, *PRODUCTS_WITHOUT_FUSION)):
        if activation not in FUSED_ACTIVATIONS:
            problems.append(
                f"{call.path!r} computes {activation!r} inside, and int8 needs a "
                "quantizer before that. split_activations(model) makes the activation "
                "a layer of its own."
            )
    elif isinstance(layer, layers.Activation):
        if activation not in ACTIVATIONS:
            problems.append(_unknown(call, f"an Activation of {activation!r}"))
    elif not (keeps_range(layer) or has_own_range(layer)):
        problems.append(_unknown(call, f"a {type(layer).__name__}"))


def lone_normalizations(graph: Trace) -> list[Any]:
    """The BatchNormalization layers that do not belong to a convolution before them."""
    return [
        call.layer
        for call in graph.calls
        if isinstance(call.layer, layers.BatchNormalization) and not _folds(call, graph)
    ]


def _folds(normalization: Call, graph: Trace) -> bool:
    given = normalization.inputs[0]
    before = graph.producers().get(given)
    alone = graph.only_consumer(given) is normalization
    return alone and before is not None and _fuses(before, normalization)


def _unknown(call: Call, what: str) -> str:
    return f"{call.path!r} is {what}, of which LiteRT has no int8 form known here."
