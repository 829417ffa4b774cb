"""Quantization-aware training under TFMOT's names."""

import contextlib
import functools
import re
from typing import Any

import keras

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.kinds import keeps_range
from keras_dlopt.graph.rebuilding import Piece, like, rebuilt
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.graph.walk import children, is_functional
from keras_dlopt.int8 import int8_recipe, split_activations
from keras_dlopt.interop.tfmot.preserving import (
    Default8BitPrunePreserveQuantizeScheme,
)
from keras_dlopt.select import Selector, at, matching
from keras_dlopt.transforms import (
    FakeQuant,
    FakeQuantActivation,
    Recipe,
    Transform,
    TransformedModel,
    transform,
)

# TFMOT's Default8BitQuantizeScheme: moving averages that start at (-6, 6).
MOMENTUM, INITIAL_RANGE = 0.999, (-6.0, 6.0)


def activation_quantizer() -> FakeQuantActivation:
    """How TFMOT's 8-bit scheme quantizes activations."""
    return FakeQuantActivation(momentum=MOMENTUM, initial=INITIAL_RANGE)


def input_quantizer() -> FakeQuantActivation:
    """How it quantizes the model's inputs: the widest range ever seen."""
    return FakeQuantActivation(observer="min_max")


def weight_quantizer(layer: Any) -> FakeQuant:
    """How TFMOT's 8-bit scheme quantizes a kernel: convolutions per output channel."""
    per_channel = isinstance(layer, keras.layers.Conv2D)
    return FakeQuant(bits=8, per_channel=per_channel)


def quantize_model(
    to_quantize: keras.Model, quantized_layer_name_prefix: str = "quant_"
) -> TransformedModel:
    """`tfmot.quantization.keras.quantize_model`.

    Kernels of 2-D convolutions are quantized per output channel, all others per
    tensor; activations by moving averages that start at (-6, 6), where LiteRT rounds.
    A fused sigmoid, softmax or tanh becomes a layer of its own.

    Args:
        to_quantize: a built model of any kind; it keeps its weights.
        quantized_layer_name_prefix: taken for compatibility; layers keep their names.

    Raises:
        ConfigError: for anything but a Keras 3 model.

    Warns:
        UserWarning: about layers that int8 does not have; they are simulated.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> [type(t).__name__ for _, t in quantize_model(net).recipe.entries]
        ['FakeQuantActivation', 'FakeQuantActivation', 'FakeQuant']
    """
    _check_model(to_quantize, "quantize_model")
    model, recipe = _placed(to_quantize)
    return transform(model, recipe)


def _check_model(model: Any, function: str) -> None:
    if not isinstance(model, keras.Model):
        raise ConfigError(
            f"{function} takes a keras.Model of Keras 3. Received: {model!r}. For one "
            "layer use quantize_annotate_layer; a tf_keras model is converted from its "
            "file by load_model."
        )
    if isinstance(model, TransformedModel):
        raise ConfigError(
            f"{function} takes an ordinary model, and {model.name!r} is transformed. "
            "Strip it first (strip_pruning, strip_clustering); to keep its zeros or "
            "clusters in training, use one recipe for keras_dlopt.transform, such as "
            "int8_recipe(model, weights=Prune(0.8) >> FakeQuant(bits=8))."
        )


def _placed(model: keras.Model) -> tuple[keras.Model, Recipe]:
    """The model, its activations split off if needed, and the recipe of the scheme."""
    try:
        recipe = int8_recipe(model, strict=True, like="tfmot")
    except ConfigError:
        if is_functional(model):
            model = split_activations(model)
        recipe = int8_recipe(model, like="tfmot")  # warns of what int8 does not have
    entries: list[tuple[Selector, Transform]] = []
    for selector, chosen in recipe.entries:
        if not isinstance(chosen, FakeQuantActivation):
            continue
        entry = chosen
        if chosen.range is None:
            inputs = all(p.endswith("/input") for p in getattr(selector, "paths", "?"))
            entry = input_quantizer() if inputs else activation_quantizer()
        entries.append((selector, entry))
    quantized = [
        t
        for t in weight_targets(model)
        if any(s(t) for s, c in recipe.entries if c.kind == "weight")
    ]
    return model, Recipe(entries + weight_entries(quantized))


def weight_entries(targets: list[Any]) -> list[tuple[Selector, Transform]]:
    """One recipe entry for each granularity among the targets."""
    groups: dict[bool, list[str]] = {}
    for target in targets:
        per_channel = weight_quantizer(target.layer).per_channel
        groups.setdefault(per_channel, []).append(target.path)
    return [
        (at(*paths), FakeQuant(bits=8, per_channel=per_channel))
        for per_channel, paths in groups.items()
    ]


@keras.saving.register_keras_serializable("keras_dlopt")
class QuantizeAnnotate(keras.layers.Wrapper):
    """A note on a layer: `quantize_apply` shall quantize it. Changes nothing itself.

    Args:
        layer: the layer.
        quantize_config: a `Recipe` for it in place of the 8-bit scheme, or None.
    """

    def __init__(self, layer, quantize_config: Recipe | None = None, **kwargs: Any):
        if quantize_config is not None and not isinstance(quantize_config, Recipe):
            raise ConfigError(
                "quantize_config takes a keras_dlopt.Recipe for the layer, such as "
                "Recipe([(named('kernel'), FakeQuant(bits=4))]), in place of TFMOT's "
                f"QuantizeConfig. Received: {quantize_config!r}."
            )
        kwargs.setdefault("name", layer.name)
        super().__init__(layer, **kwargs)
        self.quantize_config = quantize_config

    def call(self, inputs, *args, **kwargs):
        return self.layer(inputs, *args, **kwargs)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def compute_output_spec(self, *args, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Keras' own entries and the recipe."""
        recipe = self.quantize_config
        own = {"quantize_config": None if recipe is None else recipe.to_dict()}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the layer from its `get_config()`."""
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(
            config.pop("layer"), custom_objects=custom_objects
        )
        recipe = config.pop("quantize_config")
        own = None if recipe is None else Recipe.from_dict(recipe)
        return cls(layer, quantize_config=own, **config)


def quantize_annotate_layer(
    to_annotate: Any, quantize_config: Recipe | None = None
) -> QuantizeAnnotate:
    """`tfmot.quantization.keras.quantize_annotate_layer`.

    Args:
        to_annotate: a layer.
        quantize_config: a `Recipe` for it in place of the 8-bit scheme, or None.

    Raises:
        ConfigError: for anything but a layer, or a config that is not a recipe.

    Example:
        >>> quantize_annotate_layer(keras.layers.Dense(2, name="top")).name
        'top'
    """
    is_layer = isinstance(to_annotate, keras.layers.Layer)
    if not is_layer or isinstance(to_annotate, keras.Model):
        raise ConfigError(
            "quantize_annotate_layer takes a layer of Keras 3. Received: "
            f"{to_annotate!r}. For a model use quantize_annotate_model."
        )
    return QuantizeAnnotate(to_annotate, quantize_config)


def quantize_annotate_model(to_annotate: keras.Model) -> keras.Model:
    """`tfmot.quantization.keras.quantize_annotate_model`: a note on every layer.

    Args:
        to_annotate: a built Sequential or Functional model. The annotated model shares
            its layers.

    Raises:
        ConfigError: for a subclassed model.
    """
    _check_model(to_annotate, "quantize_annotate_model")
    if not is_functional(to_annotate):
        raise ConfigError(
            f"{type(to_annotate).__name__} is a subclassed model, whose layers cannot "
            "be replaced from outside. quantize_model takes it as it is."
        )

    def note(layer: Any) -> list[Piece]:
        done = isinstance(layer, QuantizeAnnotate)
        return [(layer if done else QuantizeAnnotate(layer), [])]

    layers = children(to_annotate)
    return rebuilt(to_annotate, {id(la): functools.partial(note, la) for la in layers})


def quantize_apply(
    model: keras.Model,
    scheme: Any = None,
    quantized_layer_name_prefix: str = "quant_",
) -> TransformedModel:
    """`tfmot.quantization.keras.quantize_apply`.

    Args:
        model: a Sequential or Functional model with annotated layers. If all of them
            are, quantizers are placed as by `quantize_model`; else each annotated layer
            gets one at its output, and its kernel is quantized.
        scheme: None, for the 8-bit scheme, or `Default8BitPrunePreserveQuantizeScheme`.
            or `...Cluster...`. Others are recipes, for `keras_dlopt.transform`.
        quantized_layer_name_prefix: taken for compatibility; layers keep their names.

    Raises:
        ConfigError: for a model without annotated layers, or another scheme.
    """
    _check_model(model, "quantize_apply")
    keeps = isinstance(scheme, Default8BitPrunePreserveQuantizeScheme)
    if scheme is not None and not keeps:
        raise ConfigError(
            "quantize_apply knows TFMOT's default 8-bit scheme only, and those that "
            "preserve zeros and clusters. Received: "
            f"{scheme!r}. Write it as a recipe for keras_dlopt.transform, such as "
            "int8_recipe(model, weights=Prune(0.8) >> FakeQuant(bits=8))."
        )
    noted = {la.name: la for la in children(model) if isinstance(la, QuantizeAnnotate)}
    if not noted:
        raise ConfigError(
            f"The model {model.name!r} has no annotated layers. Annotate them with "
            "quantize_annotate_layer or quantize_annotate_model, or call "
            "quantize_model."
        )
    plain = _without_notes(model)
    own: list[tuple[Selector, Transform]] = []
    for name, layer in noted.items():
        if layer.quantize_config is not None:
            below = matching(f"{re.escape(name)}/.*")
            own += [(s & below, t) for s, t in layer.quantize_config.entries]
    inputs = (keras.layers.InputLayer, QuantizeAnnotate)
    if all(isinstance(layer, inputs) for layer in children(model)):
        plain, recipe = _placed(plain)
    else:
        recipe = _each(plain, [n for n, la in noted.items() if not la.quantize_config])
    if keeps:
        recipe = scheme.preserved(recipe, plain)
    return transform(plain, Recipe([*own, *recipe.entries]))


def _without_notes(model: keras.Model) -> keras.Model:
    def plain(note: QuantizeAnnotate) -> list[Piece]:
        return [(like(note.layer), note.get_weights())]

    notes = [la for la in children(model) if isinstance(la, QuantizeAnnotate)]
    return rebuilt(model, {id(note): functools.partial(plain, note) for note in notes})


def _each(model: keras.Model, names: list[str]) -> Recipe:
    """Quantizers at the outputs and kernels of these layers alone."""
    layers = {layer.name: layer for layer in children(model)}
    outputs = [n for n in names if not keeps_range(layers[n])]
    kernels = [
        target
        for target in weight_targets(model)
        if target.layer.name in names and target.name.endswith("kernel")
    ]
    entries: list[tuple[Selector, Transform]] = []
    if outputs:
        paths = at(*(f"{name}/output" for name in outputs))
        entries.append((paths, activation_quantizer()))
    return Recipe(entries + weight_entries(kernels))


def quantize_scope(*_args: Any) -> contextlib.AbstractContextManager:
    """`tfmot.quantization.keras.quantize_scope`: not needed, files load without it."""
    return contextlib.nullcontext()
