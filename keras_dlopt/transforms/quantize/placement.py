"""Where quantizers belong so that LiteRT runs a model in int8 with the same numbers.

The rules, each of which mirrors what the converter fuses or shares:

- the model's input is quantized once;
- convolution or dense -> BatchNorm -> ReLU is one operation: one quantizer at its end;
- BatchNorm elsewhere is a depthwise convolution: what it takes is quantized;
- addition -> ReLU is one too, and each branch is quantized before it;
- concatenation shares one range with what goes into it: one quantizer, after it;
- pooling by maximum, padding, cropping and reshaping keep their input's range: none;
- pooling by average has a range of its own: one;
- sigmoid and softmax end in (0, 255/256), tanh in (-1, 127/128), LiteRT's fixed ranges;
- the model's output is quantized.

Source: LiteRT's 8-bit quantization specification.
"""

import dataclasses
from typing import Any

import keras
from keras import layers

from keras_dlopt.errors import ConfigError
from keras_dlopt.select import at, weight_targets
from keras_dlopt.transforms.base import Chain, Transform
from keras_dlopt.transforms.quantize.activation import FakeQuantActivation
from keras_dlopt.transforms.quantize.tracing import Call, Trace, trace
from keras_dlopt.transforms.quantize.weight import FakeQuant
from keras_dlopt.transforms.recipe import Recipe

LINEAR = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv2DTranspose,
    layers.Dense,
    layers.DepthwiseConv2D,
)
KEEPS_RANGE = (
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Flatten,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.Permute,
    layers.Reshape,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
)
# One operation each, with a range of its own.
OWN_RANGE = (
    layers.Add,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.Concatenate,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.LeakyReLU,
    layers.Maximum,
    layers.Minimum,
    layers.Multiply,
    layers.ReLU,
    layers.Softmax,
    layers.Subtract,
)
FUSES_RELU = (
    *LINEAR,
    layers.Add,
    layers.AveragePooling2D,
    layers.BatchNormalization,
    layers.Subtract,
)
FIXED_RANGES = {
    "sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}
FUSED_ACTIVATIONS = ("linear", "relu", "relu6")
ACTIVATIONS = (*FUSED_ACTIVATIONS, *FIXED_RANGES, "leaky_relu")

_BY_HAND = (
    "Write the entries by hand instead: "
    "Recipe([(at('first_layer/input', 'relu1/output', ...), FakeQuantActivation()), "
    "(named('kernel'), FakeQuant(bits=8))]), where every operation that LiteRT runs "
    "has a quantizer on what it takes and on what it returns."
)


@dataclasses.dataclass
class _Places:
    """Paths of the quantizers, by kind."""

    inputs: list[str] = dataclasses.field(default_factory=list)
    outputs: list[str] = dataclasses.field(default_factory=list)
    fixed: dict[tuple[float, float], list[str]] = dataclasses.field(
        default_factory=dict
    )


def int8_recipe(
    model: keras.Model,
    *,
    weights: Transform | None = None,
    input_range: tuple[float, float] | None = None,
    momentum: float = 0.95,
    example: Any = None,
) -> Recipe:
    """The recipe that trains a model for full int8 inference by LiteRT.

    Finds from the model's graph where quantizers belong, and quantizes the kernels of
    convolutions and dense layers. `export.litert` writes what was trained with it.

    Args:
        model: a built Keras model.
        weights: what to do to the kernels; ends in `FakeQuant(bits=8)`, which is also
            the default. `Prune(0.8) >> FakeQuant(bits=8)` prunes as well.
        input_range: (low, high) of the model's inputs, such as (0, 1); None learns it.
        momentum: of the moving ranges; see `FakeQuantActivation`.
        example: a batch of inputs, for models that do not know their input's shape.

    Returns:
        A `Recipe`: plain data, to look at, to change and to add to.

    Raises:
        ConfigError: for weights that do not end in `FakeQuant(bits=8)`, and for a layer
            whose int8 form LiteRT does not have or this function does not know.

    Example:
        >>> import keras
        >>> net = keras.Sequential([
        ...     keras.Input((8, 8, 1)),
        ...     keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
        ...     keras.layers.Flatten(name="flat"),
        ...     keras.layers.Dense(10, name="logits")])
        >>> for selector, transform in int8_recipe(net).entries:
        ...     print(selector.paths, type(transform).__name__)
        ('conv/input',) FakeQuantActivation
        ('conv/output', 'logits/output') FakeQuantActivation
        ('conv/kernel', 'logits/kernel') FakeQuant
    """
    weights = FakeQuant(bits=8) if weights is None else weights
    _check_weights(weights)
    places = _place(trace(model, example), model.name)
    entries: list[tuple[Any, Transform]] = []
    if places.inputs:
        quantizer = FakeQuantActivation(momentum=momentum, range=input_range)
        entries.append((at(*places.inputs), quantizer))
    if places.outputs:
        entries.append((at(*places.outputs), FakeQuantActivation(momentum=momentum)))
    for ends, paths in places.fixed.items():
        entries.append((at(*paths), FakeQuantActivation(range=ends)))
    return Recipe(entries + _kernel_entries(model, weights))


def _check_weights(weights: Transform) -> None:
    last = weights.links[-1] if isinstance(weights, Chain) else weights
    if not isinstance(last, FakeQuant) or last.bits != 8:
        raise ConfigError(
            "int8_recipe needs weights that end in FakeQuant(bits=8), such as "
            f"Prune(0.8) >> FakeQuant(bits=8). Received: {weights!r}."
        )


def _kernel_entries(
    model: keras.Model, weights: Transform
) -> list[tuple[Any, Transform]]:
    paths = [
        target.path
        for target in weight_targets(model)
        if isinstance(target.layer, LINEAR) and target.name == "kernel"
    ]
    return [(at(*paths), weights)] if paths else []


def _place(graph: Trace, name: str) -> _Places:
    """Decides for every tensor whether a quantizer follows it."""
    producers, consumers = graph.producers(), graph.consumers()
    places = _Places(inputs=_input_paths(graph))
    quantized = set(graph.inputs)
    for call in graph.calls:
        if not call.composite:
            _check_sources(call, graph, producers, name)
            _check_layer(call, producers, consumers)
        made = [t for t in call.outputs if producers.get(t) is call]
        if not made:
            continue
        keeps = isinstance(call.layer, KEEPS_RANGE)
        if keeps and set(call.inputs) <= quantized:
            quantized.update(made)
            continue
        if any(_goes_on(call, t, graph, producers, consumers) for t in made):
            continue
        quantized.update(made)
        _add_output(places, call)
    return places


def _input_paths(graph: Trace) -> list[str]:
    """Where the model's inputs are taken: each such place quantizes them."""
    takers = [c for c in graph.calls if set(c.inputs) & set(graph.inputs)]
    # A composite layer does so once for all layers inside it. What goes into a
    # concatenation is quantized by its output's range at once.
    outer = {c.path for c in takers if c.composite}
    found = []
    for call in takers:
        inside = any(call.path.startswith(f"{path}/") for path in outer)
        if inside or isinstance(call.layer, layers.Concatenate):
            continue
        if len(set(call.inputs)) > 1:
            raise ConfigError(
                f"{call.path!r} takes an input of the model together with other "
                "tensors, and they need ranges of their own. Put a layer between that "
                "keeps the values, such as keras.layers.Reshape(inputs.shape[1:])."
            )
        found.append(f"{call.path}/input")
    return list(dict.fromkeys(found))


def _add_output(places: _Places, call: Call) -> None:
    ends = FIXED_RANGES.get(activation_name(call.layer))
    paths = places.outputs if ends is None else places.fixed.setdefault(ends, [])
    if f"{call.path}/output" not in paths:
        paths.append(f"{call.path}/output")


def _goes_on(call: Call, tensor: int, graph: Trace, producers, consumers) -> bool:
    """Whether the one layer that takes the tensor belongs to the same operation."""
    following = consumers.get(tensor, [])
    if len(following) != 1 or tensor in graph.outputs:
        return False
    return _fuses(call, following[0])


def _fuses(call: Call, following: Call) -> bool:
    if isinstance(following.layer, layers.Concatenate):
        return activation_name(call.layer) not in FIXED_RANGES
    if activation_name(call.layer) != "linear":
        return False
    if isinstance(following.layer, layers.BatchNormalization):
        return isinstance(call.layer, LINEAR)
    # A layer of layers that makes its own output ends in a sum.
    fuses = call.composite or isinstance(call.layer, FUSES_RELU)
    return fuses and _is_relu(following.layer)


def activation_name(layer: Any) -> str:
    """The name of the function that ends a layer; `"linear"` if there is none."""
    if isinstance(layer, layers.ReLU):
        return "relu"
    if isinstance(layer, layers.Softmax):
        return "softmax"
    function = getattr(layer, "activation", None)
    return getattr(function, "__name__", "linear") if function else "linear"


def _is_relu(layer: Any) -> bool:
    if isinstance(layer, layers.ReLU):
        plain = not layer.negative_slope and not layer.threshold
        return bool(plain and layer.max_value in (None, 6, 6.0))
    return isinstance(layer, layers.Activation) and activation_name(layer) in (
        "relu",
        "relu6",
    )


def _check_sources(call: Call, graph: Trace, producers: dict[int, Call], name: str):
    """Raises `ConfigError` for a tensor that no layer made: nothing can quantize it."""
    if all(t in producers or t in graph.inputs for t in call.inputs):
        return
    raise ConfigError(
        f"{call.path!r} in {name!r} takes a tensor that no layer made, but an "
        "operation between layers (x + y, keras.ops, a cast under mixed precision). "
        "Quantizers sit at layers: use one for it, such as keras.layers.Add(). "
        f"{_BY_HAND}"
    )


def _check_layer(call: Call, producers, consumers) -> None:
    """Raises `ConfigError` where LiteRT would silently compute in float."""
    layer, activation = call.layer, activation_name(call.layer)
    if isinstance(layer, layers.BatchNormalization):
        if not _folds(call, producers, consumers) and not _is_image_channel(layer):
            source = producers.get(call.inputs[0])
            raise ConfigError(
                f"{call.path!r} normalizes "
                f"{repr(source.path) if source else 'the input of the model'}, and "
                "cannot be folded into it. In int8 a BatchNormalization of other data "
                "than images must directly follow a convolution or dense layer that "
                "has no activation and feeds nothing else."
            )
    elif isinstance(layer, LINEAR):
        if activation not in FUSED_ACTIVATIONS:
            raise ConfigError(
                f"{call.path!r} computes {activation!r} inside, and int8 needs a "
                "quantizer before that. split_activations(model) makes the activation "
                "a layer of its own."
            )
    elif isinstance(layer, layers.Activation):
        if activation not in ACTIVATIONS:
            raise ConfigError(_unknown(call, f"an Activation of {activation!r}"))
    elif not isinstance(layer, (*KEEPS_RANGE, *OWN_RANGE)):
        raise ConfigError(_unknown(call, f"a {type(layer).__name__}"))


def lone_normalizations(graph: Trace) -> list[Any]:
    """The BatchNormalization layers that do not belong to a convolution before them."""
    producers, consumers = graph.producers(), graph.consumers()
    return [
        call.layer
        for call in graph.calls
        if isinstance(call.layer, layers.BatchNormalization)
        and not _folds(call, producers, consumers)
    ]


def _folds(normalization: Call, producers, consumers) -> bool:
    before = producers.get(normalization.inputs[0])
    alone = consumers[normalization.inputs[0]] == [normalization]
    return alone and before is not None and _fuses(before, normalization)


def _is_image_channel(layer: Any) -> bool:
    """Whether it can run as a depthwise convolution: images, channels last."""
    return layer.input_spec.ndim == 4 and layer.axis in (-1, 3)


def _unknown(call: Call, what: str) -> str:
    return (
        f"{call.path!r} is {what}, and int8_recipe does not know an int8 form of it. "
        f"{_BY_HAND}"
    )
