"""Recipes that quantize a whole model, weights and activations."""

import contextlib
import warnings
from typing import Any, Literal

import keras
from keras import layers

from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.copying import in_float32
from keras_dlopt.graph.kinds import weight_names
from keras_dlopt.graph.targets import Target, weight_targets
from keras_dlopt.graph.trace import Trace, trace
from keras_dlopt.int8.placement import Places, place
from keras_dlopt.select import at
from keras_dlopt.transforms.base import Chain, Transform
from keras_dlopt.transforms.model import TransformedModel
from keras_dlopt.transforms.quantize import FakeQuant, FakeQuantActivation, MinMax
from keras_dlopt.transforms.recipe import Recipe

_BY_HAND = (
    "Or write the entries by hand: "
    "Recipe([(at('first_layer/input', 'relu1/output', ...), FakeQuantActivation()), "
    "(named('kernel'), FakeQuant(bits=8))]), where every operation that LiteRT runs "
    "has a quantizer on what it takes and on what it returns."
)
_TFMOT_START = (-6.0, 6.0)
_TFMOT_WHOLE = (layers.Dense, layers.Conv2DTranspose)


def int8_recipe(
    model: keras.Model,
    *,
    weights: Transform | None = None,
    input_range: tuple[float, float] | None = None,
    momentum: float = 0.99,
    example: Any = None,
    strict: bool = False,
    like: Literal["litert", "tfmot"] = "litert",
) -> Recipe:
    """The recipe that trains a model for full int8 inference by LiteRT.

    Finds from the model's graph where quantizers belong, and quantizes kernels and
    embeddings. `export.litert` writes what was trained with it.

    Args:
        model: a built Keras model.
        weights: what to do to the kernels; ends in `FakeQuant(bits=8)`, which is also
            the default. `Prune(0.8) >> FakeQuant(bits=8)` prunes as well.
        input_range: (low, high) of the model's inputs, such as (0, 1); None learns it.
        momentum: of the ranges, which hold peaks and narrow slowly; see `PeakHold`.
        example: a batch of inputs, for models that do not know their input's shape.
        strict: whether to refuse a model with parts that LiteRT has no int8 form of.
            Otherwise a warning names them, and training simulates them with rounded
            inputs and outputs.
        like: `"tfmot"` has the ranges of TensorFlow Model Optimization: dense and
            transposed kernels per tensor, depthwise ones per multiplier, activations
            that start at (-6, 6) with a momentum of 0.999, inputs by the widest range
            seen, and quantizers before pooling. `export.litert` needs `"litert"`.

    Returns:
        A `Recipe`: plain data, to look at, to change and to add to.

    Raises:
        ConfigError: for weights that do not end in `FakeQuant(bits=8)`, and, if strict,
            for a layer whose int8 form LiteRT does not have or this function does not
            know.

    Warns:
        UserWarning: of such layers, if not strict.

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
    if like not in ("litert", "tfmot"):
        raise ConfigError(f"like must be 'litert' or 'tfmot'. Received: {like!r}.")
    weights = FakeQuant(bits=8) if weights is None else weights
    _check_weights(weights)
    places = _checked(model, example, strict, like)
    taken: Transform
    if like == "tfmot":
        made = FakeQuantActivation(momentum=0.999, initial=_TFMOT_START)
        taken = FakeQuantActivation(range=input_range, observer=MinMax())
        kernels = _tfmot_kernels(model, weights)
    else:
        made = FakeQuantActivation(momentum=momentum, observer="peak_hold")
        taken = made if input_range is None else FakeQuantActivation(range=input_range)
        kernels = kernel_entries(model, weights)
    return Recipe(_activations(places, taken, made) + kernels)


def quantization_recipe(
    model: keras.Model,
    *,
    weights: Transform | None = None,
    activations: Transform | None = None,
    inputs: Transform | None = None,
    example: Any = None,
) -> Recipe:
    """A recipe with any quantizers, at the places where `int8_recipe` has them.

    Args:
        model: a built Keras model.
        weights: for kernels and embeddings, such as `LSQ(bits=4)`; None leaves them.
        activations: such as `LSQPlusActivation(bits=4)`; None leaves them.
        inputs: for the model's inputs; None for the same as `activations`.
        example: a batch of inputs, for models that do not know their input's shape.

    Raises:
        ConfigError: for transforms of the wrong kind.

    Example:
        >>> import keras
        >>> from keras_dlopt.transforms import LSQ
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
        >>> quantization_recipe(net, weights=LSQ(bits=4)).entries[0][0].paths
        ('d/kernel',)
    """
    kinds = {"weights": weights, "activations": activations, "inputs": inputs}
    for name, transform in kinds.items():
        kind = "weight" if name == "weights" else "activation"
        if transform is not None and transform.kind != kind:
            raise ConfigError(
                f"{name} takes transforms of the kind {kind!r}. Received: "
                f"{transform!r}, of the kind {transform.kind!r}."
            )
    entries: list[tuple[Any, Transform]] = []
    if activations is not None:
        places = place(_traced(model, example))
        # Ranges that are fixed in LiteRT's int8 are no others' at other widths.
        rest = [p for paths in places.fixed.values() for p in paths]
        free = Places(inputs=places.inputs, outputs=places.outputs + rest)
        entries = _activations(free, inputs or activations, activations)
    if weights is not None:
        entries += kernel_entries(model, weights)
    return Recipe(entries)


def _checked(model: keras.Model, example: Any, strict: bool, like: str) -> Places:
    places = place(_traced(model, example), after_pooling=like == "litert")
    if places.problems and strict:
        raise ConfigError(f"{places.problems[0]} {_BY_HAND}")
    if places.problems:
        shown = " ".join(places.problems[:4])
        more = len(places.problems) - 4
        warnings.warn(
            f"{model.name!r} cannot run in int8 alone: LiteRT computes these parts in "
            "float, and training simulates them with rounded inputs and outputs. "
            f"{shown}{f' And {more} more.' if more > 0 else ''} Replace them, or "
            "accept them where the target has float.",
            stacklevel=3,
        )
    return places


def _traced(model: keras.Model, example: Any) -> Trace:
    if isinstance(model, TransformedModel):
        raise ModelError(
            f"{model.name!r} is transformed already. Give finalize(model), or the "
            "model from before, and chain what it had: Prune(0.8) >> FakeQuant(bits=8)."
        )
    with contextlib.suppress(ModelError):
        model = in_float32(model)  # whose casts would stand between the layers
    return trace(model, example)


def _activations(places: Places, taken: Transform, made: Transform) -> list[Any]:
    entries: list[tuple[Any, Transform]] = []
    if places.inputs:
        entries.append((at(*places.inputs), taken))
    if places.outputs:
        entries.append((at(*places.outputs), made))
    for ends, paths in places.fixed.items():
        entries.append((at(*paths), FakeQuantActivation(range=ends)))
    return entries


def _check_weights(weights: Transform) -> None:
    last = weights.links[-1] if isinstance(weights, Chain) else weights
    if not isinstance(last, FakeQuant) or last.bits != 8:
        raise ConfigError(
            "int8_recipe needs weights that end in FakeQuant(bits=8), such as "
            f"Prune(0.8) >> FakeQuant(bits=8). Received: {weights!r}. For other "
            "quantizers use quantization_recipe(model, weights=..., activations=...)."
        )


def kernel_entries(
    model: keras.Model, weights: Transform
) -> list[tuple[Any, Transform]]:
    """The recipe entry of a model's kernels and embeddings; none if it has none."""
    paths = [target.path for target in kernel_targets(model)]
    return [(at(*paths), weights)] if paths else []


def kernel_targets(model: keras.Model) -> list[Target]:
    """The kernels and embeddings of a model, in order."""
    return [target for target in weight_targets(model) if weight_names(target)]


def _tfmot_kernels(
    model: keras.Model, weights: Transform
) -> list[tuple[Any, Transform]]:
    """Entries with the scales that TFMOT's default 8-bit scheme has."""
    targets = kernel_targets(model)
    whole = [t.path for t in targets if isinstance(t.layer, _TFMOT_WHOLE)]
    depthwise = [t.path for t in targets if isinstance(t.layer, layers.DepthwiseConv2D)]
    rest = [t.path for t in targets if t.path not in (*whole, *depthwise)]
    parts: tuple[tuple[list[str], dict[str, Any]], ...] = (
        (whole, {"per_channel": False}),
        (depthwise, {"axis": -1}),
        (rest, {}),
    )
    return [
        (at(*paths), _changed(weights, changes)) for paths, changes in parts if paths
    ]


def _changed(weights: Transform, changes: dict[str, Any]) -> Transform:
    """The weights' transform with other arguments of the FakeQuant at its end."""
    links = list(weights.links) if isinstance(weights, Chain) else [weights]
    links[-1] = FakeQuant.from_config(links[-1].get_config() | changes)
    return links[0] if len(links) == 1 else Chain(links)
