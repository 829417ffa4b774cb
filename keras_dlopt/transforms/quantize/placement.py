"""Where quantizers belong so that LiteRT runs a model in int8 with the same numbers.

The rules, each of which mirrors what the converter fuses or shares:

- the model's input is quantized once;
- convolution or dense -> BatchNorm -> ReLU is one operation: one quantizer at its end;
- addition -> ReLU is one too, and each branch is quantized before it;
- concatenation shares one range with what goes into it: one quantizer, after it;
- pooling by maximum, padding, cropping and reshaping keep their input's range: none;
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
FUSES_RELU = (*LINEAR, layers.Add, layers.BatchNormalization, layers.Subtract)
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
    """Entries for the kernels; LiteRT has one scale for a whole transposed kernel."""
    per_channel, per_tensor = [], []
    for target in weight_targets(model):
        if isinstance(target.layer, LINEAR) and target.name == "kernel":
            transposed = isinstance(target.layer, layers.Conv2DTranspose)
            (per_tensor if transposed else per_channel).append(target.path)
    entries: list[tuple[Any, Transform]] = []
    if per_channel:
        entries.append((at(*per_channel), weights))
    if per_tensor:
        links = weights.links if isinstance(weights, Chain) else (weights,)
        last = FakeQuant(bits=8, per_channel=False)
        one_scale = Chain((*links[:-1], last)) if links[:-1] else last
        entries.append((at(*per_tensor), one_scale))
    return entries


def _place(graph: Trace, name: str) -> _Places:
    """Decides for every tensor whether a quantizer follows it."""
    producers, consumers = graph.producers(), graph.consumers()
    places = _Places()
    quantized = set(graph.inputs)
    for call in graph.calls:
        if not call.composite:
            _check_call(call, graph, producers, name)
        for tensor in call.inputs:
            path = f"{call.path}/input"
            if tensor in graph.inputs and not call.composite:
                places.inputs += [] if path in places.inputs else [path]
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


def _add_output(places: _Places, call: Call) -> None:
    ends = FIXED_RANGES.get(_activation(call.layer))
    paths = places.outputs if ends is None else places.fixed.setdefault(ends, [])
    if f"{call.path}/output" not in paths:
        paths.append(f"{call.path}/output")


def _goes_on(call: Call, tensor: int, graph: Trace, producers, consumers) -> bool:
    """Whether the one layer that takes the tensor belongs to the same operation."""
    following = consumers.get(tensor, [])
    if len(following) != 1 or tensor in graph.outputs or call.composite:
        return False
    return _fuses(call, following[0])


def _fuses(call: Call, following: Call) -> bool:
    if isinstance(following.layer, layers.Concatenate):
        return _activation(call.layer) not in FIXED_RANGES
    if _activation(call.layer) != "linear":
        return False
    if isinstance(following.layer, layers.BatchNormalization):
        return isinstance(call.layer, LINEAR)
    return _is_relu(following.layer) and isinstance(call.layer, FUSES_RELU)


def _activation(layer: Any) -> str:
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
    return isinstance(layer, layers.Activation) and _activation(layer) in (
        "relu",
        "relu6",
    )


def _check_call(call: Call, graph: Trace, producers: dict[int, Call], name: str):
    """Raises `ConfigError` where LiteRT would silently compute in float."""
    layer, activation = call.layer, _activation(call.layer)
    made_by = [producers.get(t) for t in call.inputs]
    for tensor, source in zip(call.inputs, made_by, strict=True):
        if source is None and tensor not in graph.inputs:
            raise ConfigError(
                f"{call.path!r} in {name!r} takes a tensor that no layer made, but an "
                "operation between layers (x + y, keras.ops, a cast under mixed "
                "precision). Quantizers sit at layers: use one for it, such as "
                f"keras.layers.Add(). {_BY_HAND}"
            )
    if isinstance(layer, layers.BatchNormalization):
        before = made_by[0]
        if (
            before is None
            or not isinstance(before.layer, LINEAR)
            or _activation(before.layer) != "linear"
        ):
            raise ConfigError(
                f"{call.path!r} normalizes the output of "
                f"{'the input' if before is None else repr(before.path)}, so it cannot "
                "be folded into a convolution. In int8 a BatchNormalization must "
                "directly follow a convolution or dense layer without activation."
            )
    elif isinstance(layer, LINEAR) and activation in FUSED_ACTIVATIONS:
        return
    elif isinstance(layer, LINEAR):
        raise ConfigError(
            f"{call.path!r} computes {activation!r} inside, and int8 needs a quantizer "
            f"before that. Write {type(layer).__name__}(..., name=...) without "
            f"activation, followed by keras.layers.Activation({activation!r})."
        )
    elif isinstance(layer, layers.Activation) and activation in ACTIVATIONS:
        return
    elif not isinstance(layer, (*KEEPS_RANGE, *OWN_RANGE)):
        kind = type(layer).__name__
        detail = f" of {activation!r}" if isinstance(layer, layers.Activation) else ""
        raise ConfigError(
            f"{call.path!r} is a {kind}{detail}, and int8_recipe does not know an int8 "
            f"form of it. {_BY_HAND}"
        )
