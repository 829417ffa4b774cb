"""Few trained numbers beside a frozen model: LoRA on any kernels."""

import math
from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.adapt.places import by_depth, selected, weights_of
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.rebuilding import like, rebuilt
from keras_dlopt.graph.targets import Target
from keras_dlopt.graph.walk import layers_below
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.select import Selector, at, named
from keras_dlopt.transforms import Frozen, LowRankDelta, Recipe


def lora_recipe(
    model: keras.Model,
    rank: int = 8,
    *,
    alpha: float | None = None,
    select: Selector | None = None,
    train: Selector | None = None,
    seed: int = 0,
) -> Recipe:
    """A recipe that trains a low rank beside kernels, and else the head alone.

    Kernels of any layer, convolutions among them, for which the two factors are smaller
    than the kernel. All that is neither selected nor to be trained is `Frozen`. Moving
    statistics of BatchNormalization go on moving unless
    `callbacks.FreezeBatchNormalization(0)` is given to `fit`.

    Args:
        model: a built model.
        rank: of the differences.
        alpha: as in `LowRankDelta`.
        select: which weights of two or more dimensions; None for kernels.
        train: what is trained as it is; None for the last kernel with its bias.
        seed: of the factors.

    Returns:
        A `Recipe` of `LowRankDelta` and `Frozen`: plain data.

    Raises:
        ConfigError: for selectors that mean no weight, with the nearest ones; if no
            selected weight is larger than its factors.
        ModelError: for a model that is not built or has no kernel.

    Example:
        >>> from keras_dlopt import transform
        >>> net = keras.Sequential([
        ...     keras.Input((64,)), keras.layers.Dense(64), keras.layers.Dense(3)])
        >>> small = transform(net, lora_recipe(net, 2))
        >>> sum(v.shape.num_elements() for v in small.trainable_variables)
        451
    """
    rank = checks.count(rank, name="rank")
    targets = weights_of(model)
    full = by_depth(model)[-1] if train is None else selected(targets, train)
    kept = {id(t.variable) for t in full}
    chosen = selected(targets, select or named("kernel"))
    wide = [t for t in chosen if id(t.variable) not in kept and len(t.shape or ()) > 1]
    tuned = [t for t in wide if _saves(t, rank)]
    if not tuned:
        raise ConfigError(
            f"No selected weight is larger than two factors of rank {rank}: "
            f"{ {t.path: t.shape for t in wide[:5]} }. Lower the rank, or train these "
            "weights as they are."
        )
    kept |= {id(t.variable) for t in tuned}
    rest = [t for t in targets if id(t.variable) not in kept and t.variable.trainable]
    entries: list[Any] = [
        (at(*(t.path for t in tuned)), LowRankDelta(rank, alpha=alpha, seed=seed))
    ]
    if rest:
        entries.append((at(*(t.path for t in rest)), Frozen()))
    return Recipe(entries)


def _saves(target: Target, rank: int) -> bool:
    shape = target.shape or ()
    return rank * (math.prod(shape[:-1]) + shape[-1]) < math.prod(shape)


def enable_lora(
    model: keras.Model,
    rank: int = 8,
    *,
    alpha: float | None = None,
    select: Selector | None = None,
) -> list[str]:
    """Turns on Keras' own LoRA in the layers of the selected weights, in place.

    Keras has it in Dense, EinsumDense, Embedding and convolutions. It freezes their
    kernels; biases and other layers keep their flags. `merge_lora` ends it.

    Args:
        model: a built model, changed.
        rank: of the differences.
        alpha: `lora_alpha` of Keras; None for the rank.
        select: which weights; None for kernels of layers that have it, save the last.

    Returns:
        The paths of the weights.

    Raises:
        ConfigError: for a selector that means no weight, and for weights of layers
            without LoRA; `lora_recipe` reaches those.
        ModelError: for a model that is not built or has no kernel.

    Example:
        >>> net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="a"),
        ...     keras.layers.Dense(3)])
        >>> enable_lora(net, 2)
        ['a/kernel']
    """
    rank = checks.count(rank, name="rank")
    alpha = checks.optional(checks.positive, alpha, name="alpha")
    targets = weights_of(model)
    if select is None:
        last = {id(t.variable) for t in by_depth(model)[-1]}
        chosen = [
            t
            for t in selected(targets, named("kernel", "embeddings"))
            if id(t.variable) not in last and _offers(t)
        ]
    else:
        chosen = selected(targets, select)
    without = [t.path for t in chosen if not _offers(t)]
    if without or not chosen:
        raise ConfigError(
            f"Keras has no LoRA for {without[:5] or 'any weight here'}, or it is on "
            "already. Use transform(model, lora_recipe(model, rank)), which reaches "
            "any kernel."
        )
    for target in chosen:
        target.layer.enable_lora(
            rank, **({} if alpha is None else {"lora_alpha": alpha})
        )
    return [t.path for t in chosen]


def _offers(target: Target) -> bool:
    layer = target.layer
    has = hasattr(layer, "enable_lora") and target.name in ("kernel", "embeddings")
    return has and not getattr(layer, "lora_enabled", False)


def merge_lora(model: keras.Model) -> keras.Model:
    """A copy in which Keras' LoRA is added to the kernels, with plain layers.

    Args:
        model: a Sequential or Functional model in which layers have LoRA on.

    Raises:
        ModelError: for a model without such layers, or a subclassed one.

    Example:
        >>> net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="a"),
        ...     keras.layers.Dense(3)])
        >>> _ = enable_lora(net, 2)
        >>> merge_lora(net).count_params()
        99
    """
    layers = [one for one in layers_below(model) if getattr(one, "lora_enabled", False)]
    if not layers:
        raise ModelError(
            f"No layer of {model.name!r} has Keras' LoRA on. A model with "
            "LowRankDelta becomes plain by finalize(model)."
        )
    return rebuilt(model, {id(one): _merged(one) for one in layers})


def _merged(layer: Any) -> Any:
    def make() -> list[Any]:
        plain = like(layer, lora_rank=None)
        name = "embeddings" if isinstance(layer, keras.layers.Embedding) else "kernel"
        values = [to_numpy(getattr(layer, name))]
        if getattr(layer, "bias", None) is not None:
            values.append(to_numpy(layer.bias))
        return [(plain, values)]

    return make
