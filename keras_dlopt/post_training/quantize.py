"""Quantization after training: weights at once, activations from calibration data."""

from typing import Any, Literal

import keras

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.trace import trace
from keras_dlopt.graph.walk import as_functional, custom_classes, is_functional
from keras_dlopt.int8 import int8_recipe, quantization_recipe
from keras_dlopt.int8.partly import without
from keras_dlopt.int8.placement import place
from keras_dlopt.int8.preparing import prepared
from keras_dlopt.int8.recipes import kernel_entries
from keras_dlopt.post_training.bias import correct_bias as corrected
from keras_dlopt.post_training.calibrate import calibrate
from keras_dlopt.post_training.data import Batches
from keras_dlopt.post_training.equalize import equalize as equalized
from keras_dlopt.post_training.float_parts import worst_parts
from keras_dlopt.post_training.granularity import (
    nearest,
    one_scale_pays,
    with_normalization_in_dense,
    with_one_scale,
)
from keras_dlopt.select import Selector
from keras_dlopt.surgery import opened
from keras_dlopt.transforms import (
    FakeQuant,
    FakeQuantActivation,
    Recipe,
    Transform,
    TransformedModel,
    transform,
)
from keras_dlopt.transforms.quantize.observers import Observer
from keras_dlopt.transforms.trainer import FORWARDED, REFUSED, overridden

# Where tanh, sigmoid and softmax end in LiteRT's kernels of 8 bits, and of 16.
_ENDS_8 = ((0.0, 255 / 256), (-1.0, 127 / 128))
_ENDS_16 = (-32767 / 32768, 32767 / 32768)


def quantize(
    model: keras.Model,
    data: Any,
    *,
    weights: Transform | None = None,
    activation_bits: int = 8,
    observer: str | Observer = "mse",
    input_range: tuple[float, float] | None = None,
    recipe: Recipe | None = None,
    per_channel: bool | Literal["auto"] = True,
    equalize: bool = False,
    correct_bias: bool = False,
    keep_float: Selector | None = None,
    mixed: Literal["auto"] | None = None,
    max_error: float = 0.01,
    batch_size: int = 64,
    example: Any = None,
) -> TransformedModel:
    """A quantized copy of a trained model, without training it again.

    Kernels go to their grids at once; the ranges of the activations are chosen from
    calibration data. `finalize`, `save_compressed` and `export.litert` take the result,
    and `fit` trains it on. Functional and Sequential models are brought into the normal
    form of int8 first, as by `int8.prepare(model, fold=True)`; blocks written as one
    layer are opened for it (`surgery.opened`) where more of them runs in int8 then,
    unless `keep_float` names parts of the model.

    Args:
        model: a trained, built Keras model; it stays as it is.
        data: some hundred examples of what the model will see, without labels.
        weights: for kernels and embeddings; None for `FakeQuant(bits=8)`.
        activation_bits: 2 to 16; LiteRT runs 8, and 16 without zero points.
        observer: how ranges are chosen; see `calibrate`.
        input_range: (low, high) of the inputs, such as (0, 1); None calibrates it.
        recipe: which quantizer where, in place of the three arguments before.
        per_channel: False gives each dense kernel one scale, after its normalization
            went into it: the file has 8 bytes less an output channel, and needs
            `correct_bias=True` more. `"auto"` does so where the outputs on the data are
            as near to the float model's, up to a tenth; all other kernels have a scale
            per output channel.
        equalize: whether to equalize the layers first; see `equalize`.
        correct_bias: whether to correct the biases last; see `correct_bias`.
        keep_float: means kernels and activations that are not quantized, such as
            `at("logits/kernel")`; the operations around them compute in float.
        mixed: `"auto"` leaves in float what hurts most on the data, until the outputs
            are near enough; the result's `float_parts` lists it with the figures.
        max_error: relative squared error of the outputs that `mixed="auto"` accepts.
        batch_size: of the data, for arrays.
        example: a batch of inputs, for models that do not know their input's shape;
            None takes one of the data.

    Raises:
        ConfigError: for a recipe or weights together with what they replace, another
            `per_channel`, or a `keep_float` that means nothing.
        DataError: for data that is empty or does not fit the model.
        ModelError: for a model that cannot be copied or, to equalize, be rebuilt.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> small = quantize(net, x)
        >>> float(np.abs(small(x) - net(x)).max()) < 0.05
        True

    Source: Nagel et al., "A White Paper on Neural Network Quantization"
    (arXiv:2106.08295), section 3.
    """
    given = weights is not None or input_range is not None or activation_bits != 8
    _check_given(recipe, given, weights, per_channel)
    checks.choice(mixed, name="mixed", choices=(None, "auto"))
    checks.positive(max_error, name="max_error")
    # Fails before the work, and reads a generator once.
    data = Batches(model, data, batch_size=batch_size)
    if example is None and not getattr(model, "inputs", None):
        example = data.batches[0]
    if equalize:
        model = equalized(model, example=example)
    if recipe is None:
        if activation_bits in (8, 16):
            # A selector names layers as they are in the model that was given.
            model = _prepared(model, example, opens=keep_float is None)
        recipe = _recipe(model, weights, activation_bits, input_range, example)

    def made(source: keras.Model, recipe: Recipe) -> TransformedModel:
        if keep_float is not None:
            recipe = without(source, recipe, keep_float)
        small = ranged(source, recipe)
        found = worst_parts(source, small, data, max_error) if mixed else None
        if found is not None and found.parts:
            small = ranged(source, without(source, recipe, found.selector()))
        small.float_parts = found
        if correct_bias:
            corrected(small, data, batch_size=batch_size, example=example)
        return small

    def ranged(source: keras.Model, recipe: Recipe) -> TransformedModel:
        small = transform(source, recipe)
        calibrate(small, data, observer=observer, batch_size=batch_size)
        small.update_transforms(0)
        return small

    if per_channel is True or not one_scale_pays(model):
        return made(model, recipe)
    source = with_normalization_in_dense(model)
    if source is not model:
        recipe = _recipe(source, weights, activation_bits, input_range, example)
    if per_channel is False:
        return made(source, with_one_scale(source, recipe))
    plain, fewer = made(source, recipe), made(source, with_one_scale(source, recipe))
    return nearest(source, data, plain, fewer)


def _check_given(recipe: Any, given: bool, weights: Any, per_channel: Any) -> None:
    """Raises for arguments that say the same thing twice."""
    if recipe is not None and given:
        raise ConfigError(
            "A recipe says all about weights and activations: leave out weights, "
            "activation_bits and input_range, or the recipe."
        )
    if per_channel not in (True, False, "auto"):
        raise ConfigError(
            f"per_channel must be True, False or 'auto'. Received: {per_channel!r}."
        )
    if per_channel is not True and (recipe is not None or weights is not None):
        raise ConfigError(
            "per_channel chooses the scales of int8 kernels. Where weights or a recipe "
            "are given, they say it: FakeQuant(bits=8, per_channel=False)."
        )


def _prepared(model: Any, example: Any, *, opens: bool) -> Any:
    """The model in the normal form of int8, where it knows its graph.

    Blocks written as one layer may be opened, if int8 has more for what is inside.
    """
    own = custom_classes(model).values()
    known = as_functional(model) is not None
    known = known and not any(issubclass(c, keras.Model) for c in own)
    made = prepared(model, fold=True) if known else model
    # A model with a class of its own keeps it, and what it does in fit().
    mine = type(model) in own and (
        is_functional(model) or any(overridden(model, n) for n in FORWARDED + REFUSED)
    )
    if not own or not opens or mine or not (before := _problems(made, example)):
        return made
    try:
        inside = prepared(opened(model, example=example), fold=True)
        return inside if _problems(inside, example) < before else made
    except ModelError:
        return made


def _problems(model: Any, example: Any) -> int:
    """How much of a model int8 has no form for."""
    return len(place(trace(model, example)).problems)


def _recipe(model, weights, activation_bits, input_range, example) -> Recipe:
    weights = weights or FakeQuant(bits=8)
    if activation_bits in (8, 16):
        placed = int8_recipe(model, input_range=input_range, example=example)
        made = [e for e in placed.entries if e[1].kind == "activation"]
        if activation_bits == 16:
            made = [(selector, _sixteen(one)) for selector, one in made]
        return Recipe(made + kernel_entries(model, weights))
    return quantization_recipe(
        model,
        weights=weights,
        activations=FakeQuantActivation(bits=activation_bits),
        inputs=FakeQuantActivation(bits=activation_bits, range=input_range),
        example=example,
    )


def _sixteen(one: Any) -> FakeQuantActivation:
    """An activation quantizer of LiteRT's int8 as that of its int16."""
    ends = _ENDS_16 if one.range in _ENDS_8 else one.range
    return FakeQuantActivation(bits=16, symmetric=True, range=ends)


def dynamic_range(
    model: keras.Model, *, weights: Transform | None = None
) -> TransformedModel:
    """A copy of a trained model with quantized kernels and float activations.

    Needs no data: what activations there are is known at run time only.

    Args:
        model: a trained, built Keras model; it stays as it is.
        weights: for kernels and embeddings; None for `FakeQuant(bits=8)`.

    Raises:
        ConfigError: for a model without kernels.
        ModelError: for a model that cannot be copied.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> plain = dlopt.finalize(dynamic_range(net))
        >>> [np.unique(v.numpy()).size <= 255 for v in plain.weights]
        [True, True]
    """
    entries = kernel_entries(model, weights or FakeQuant(bits=8))
    if not entries:
        raise ConfigError(
            f"{model.name!r} has no kernels and no embeddings to quantize."
        )
    small = transform(model, Recipe(entries))
    small.update_transforms(0)
    return small
