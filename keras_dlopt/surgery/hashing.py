"""Models with layers that store the buckets of their hashed kernels alone."""

from functools import partial
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.kinds import is_product
from keras_dlopt.graph.rebuilding import Piece, reaches, rebuilt
from keras_dlopt.graph.targets import Target, weight_targets
from keras_dlopt.graph.walk import is_functional
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.select import Selector, at
from keras_dlopt.transforms.finalize import finalize
from keras_dlopt.transforms.hashed_kernel import KINDS, OPTIONS, HashedKernel
from keras_dlopt.transforms.model import TransformedModel
from keras_dlopt.transforms.recipe import Recipe
from keras_dlopt.transforms.share import HashedWeights


def hashed_layers(model: TransformedModel) -> keras.Model:
    """A plain model with `HashedKernel` layers where kernels were hashed.

    It computes what `finalize(model)` computes, and a file of it holds one number a
    bucket instead of one a weight.

    Args:
        model: a transformed Sequential or Functional model with `HashedWeights`.

    Raises:
        ModelError: for anything else.
        ConfigError: for hashed weights of other layers than Dense and Conv1D to Conv3D;
            `hashed_recipe` leaves those out from the start.

    Example:
        >>> from keras_dlopt import Recipe, named, transform
        >>> net = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> small = transform(net, Recipe([(named("kernel"), HashedWeights(1 / 64))]))
        >>> net.count_params(), hashed_layers(small).count_params()
        (4160, 128)
    """
    groups = getattr(model, "groups", ())
    found = {
        slot.target.path: (group.transform, slot.arrays())
        for group in groups
        if isinstance(group.transform, HashedWeights)
        for slot in group.slots
    }
    if not isinstance(model, TransformedModel) or not found:
        raise ModelError(
            "hashed_layers takes a model with HashedWeights, made by "
            "keras_dlopt.transform. Received: "
            f"{model!r}."
        )
    plain = finalize(model)
    targets = {t.path: t for t in weight_targets(plain)}
    pieces = {}
    for path, (transform, arrays) in found.items():
        layer = targets[path].layer
        problem = _problem(targets[path])
        if problem:
            raise ConfigError(
                f"{path!r} {problem}. Leave it out of the recipe, as "
                "hashed_recipe(model) does."
            )
        pieces[id(layer)] = partial(_piece, layer, transform, arrays)
    return rebuilt(plain, pieces)


def _problem(target: Target) -> str:
    """Why a weight cannot be stored as a hash; empty if it can."""
    layer = target.layer
    if not is_product(layer, exactly=True) or target.name != "kernel":
        return (
            f"of a {type(layer).__name__} cannot be stored as a hash: hashed_layers "
            f"knows the kernels of {', '.join(KINDS)} without groups"
        )
    if not reaches(target.parents):
        around = next(p for p in target.parents[:-1] if not is_functional(p))
        return (
            f"lies in a {type(around).__name__}, whose layers cannot be replaced from "
            "outside"
        )
    return ""


def hashed_recipe(
    model: keras.Model,
    ratio: float = 1 / 8,
    *,
    signs: bool = True,
    seed: int = 0,
    select: Selector | None = None,
) -> Recipe:
    """A recipe of `HashedWeights` for the kernels that `hashed_layers` can store.

    Args:
        model: a built model.
        ratio: numbers by weights, in (0, 1).
        signs: whether a second hash changes signs.
        seed: of the hash.
        select: which of those kernels; None for all.

    Raises:
        ConfigError: if there is no such kernel; for a ratio or a seed out of range.

    Example:
        >>> net = keras.Sequential([keras.Input((8, 8)), keras.layers.LSTM(4)])
        >>> net.add(keras.layers.Dense(16, name="last"))
        >>> [selector.paths for selector, _ in hashed_recipe(net).entries]
        [('last/kernel',)]
    """
    chosen = [t for t in weight_targets(model) if select is None or select(t)]
    problems = {t.path: _problem(t) for t in chosen}
    paths = [path for path, problem in problems.items() if not problem]
    if not paths:
        why = [f"{path!r} {text}" for path, text in problems.items()][:5]
        raise ConfigError(
            f"Nothing selected in {model.name!r} can be stored as a hash: "
            f"{'; '.join(why) or 'the selector meets no weight'}. Put HashedWeights "
            "into a recipe for any weight, and keep the model as finalize makes it."
        )
    return Recipe([(at(*paths), HashedWeights(ratio, signs=signs, seed=seed))])


def _piece(
    layer: Any, transform: HashedWeights, arrays: dict[str, np.ndarray]
) -> list[Piece]:
    config = layer.get_config()
    conv = not isinstance(layer, keras.layers.Dense)
    new = HashedKernel(
        type(layer).__name__,
        config["filters" if conv else "units"],
        buckets=arrays["buckets"].size,
        kernel_size=tuple(config["kernel_size"]) if conv else (),
        options={k: config[k] for k in OPTIONS} if conv else None,
        activation=config["activation"],
        use_bias=layer.use_bias,
        signs=transform.signs,
        seed=transform.seed,
        name=layer.name,
    )
    bias = [to_numpy(layer.bias)] if layer.use_bias else []
    return [(new, [arrays["buckets"], *bias])]
