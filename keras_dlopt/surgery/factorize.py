"""Layers replaced by the two or three smaller ones that their low-rank weights are."""

from functools import partial
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.kinds import is_product
from keras_dlopt.graph.rebuilding import Piece, like, reaches, rebuilt
from keras_dlopt.graph.targets import Target, weight_targets
from keras_dlopt.graph.walk import is_functional
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.transforms.finalize import finalize
from keras_dlopt.transforms.low_rank import LowRank
from keras_dlopt.transforms.model import TransformedModel, transform
from keras_dlopt.transforms.recipe import Recipe

Factors = dict[str, np.ndarray]


def factorize(model: keras.Model, recipe: Recipe | None = None) -> keras.Model:
    """A plain model with smaller layers in place of those with `LowRank` kernels.

    A dense layer becomes two, a convolution two (`"svd"`) or three (`"tucker"`), named
    `<layer>_reduce`, `<layer>_core` and `<layer>`; the last one has the bias and the
    activation. Their product is the kernel of the transform, exactly; what the layers
    compute differs by float rounding. Layers whose factors are no smaller stay whole.

    Args:
        model: a `TransformedModel`; or a built Sequential or Functional model, with
            `recipe`.
        recipe: applied first, such as `low_rank_recipe(model, energy=0.9)`.

    Returns:
        A new model of the original kind, nested models included. Other transforms are
        baked in, as by `finalize`.

    Raises:
        ModelError: for a subclassed model, and if nothing has low rank.
        ConfigError: for a `LowRank` on a layer that cannot be split: factorize knows
            Dense, Conv1D, Conv2D and Conv3D without groups; and for a chain with it.

    Example:
        >>> from keras_dlopt import LowRank, Recipe, named
        >>> net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="d")])
        >>> small = factorize(net, Recipe([(named("kernel"), LowRank(2))]))
        >>> [layer.name for layer in small.layers], small.count_params()
        (['d_reduce', 'd'], 40)
    """
    if recipe is not None:
        model = transform(model, recipe)
    if not isinstance(model, TransformedModel):
        raise ModelError(
            "factorize takes a TransformedModel, or a model and a recipe. Received: "
            f"{model!r}. Try factorize(model, low_rank_recipe(model, energy=0.9))."
        )
    found = _factors(model)
    plain = finalize(model)
    targets = {t.path: t for t in weight_targets(plain)}
    layers = {path: _checked(targets[path]) for path in found}
    small = {
        id(layers[path]): (layers[path], factors)
        for path, factors in found.items()
        if _smaller(factors, layers[path])
    }
    pieces = {key: partial(_pieces, *found) for key, found in small.items()}
    return rebuilt(plain, pieces)


def _factors(model: TransformedModel) -> dict[str, Factors]:
    found: dict[str, Factors] = {}
    for group in model.groups:
        if isinstance(group.transform, LowRank):
            found |= {slot.target.path: slot.arrays() for slot in group.slots}
        elif any(isinstance(t, LowRank) for t in getattr(group.transform, "links", ())):
            raise ConfigError(
                f"factorize needs LowRank alone. Received: {group.transform!r}. "
                "Factorize first, then apply the rest to the new layers."
            )
    if not found:
        raise ModelError(
            f"Nothing in {model.name!r} has low rank. Put LowRank(...) into the recipe "
            "(low_rank_recipe leaves out weights whose factors would be no smaller)."
        )
    return found


def _checked(target: Target) -> Any:
    """The layer of a kernel that can be split."""
    layer = target.layer
    if not is_product(layer) or target.name != "kernel":
        raise ConfigError(
            f"{target.path!r} of a {type(layer).__name__} cannot be split into layers: "
            "factorize knows Dense, Conv1D, Conv2D and Conv3D without groups. Leave it "
            "out of the recipe, or keep the model as finalize makes it."
        )
    if is_functional(target.parents[0]) and not reaches(target.parents):
        raise ConfigError(
            f"{target.path!r} lies in a {type(target.parents[-2]).__name__}, whose "
            "layers cannot be replaced from outside. Leave it out of the recipe, as "
            "low_rank_recipe(model) does, or keep the model as finalize makes it."
        )
    return layer


def _smaller(factors: Factors, layer: Any) -> bool:
    return sum(f.size for f in factors.values()) < np.prod(layer.kernel.shape)


def _pieces(layer: Any, factors: Factors) -> list[Piece]:
    """The layers in place of one, each with its weights."""
    dense = isinstance(layer, keras.layers.Dense)
    width = "units" if dense else "filters"
    bias = [to_numpy(layer.bias)] if layer.use_bias else []
    ones = () if dense else (1,) * len(layer.kernel_size)
    plain: dict[str, Any] = {
        "use_bias": False,
        "activation": None,
        "kernel_regularizer": None,
        "activity_regularizer": None,
    }
    point: dict[str, Any] = {}  # makes a convolution one of single points
    if not dense:
        point = {"kernel_size": ones, "strides": ones, "dilation_rate": ones}
        point["padding"] = "valid"

    def piece(suffix: str, kernel: np.ndarray, **changes: Any) -> Piece:
        own = {**plain, **changes, width: kernel.shape[-1]}
        return like(layer, **own, name=f"{layer.name}_{suffix}"), [kernel]

    first, last = factors["first"], factors["last"]
    end = like(layer, **point), [last.reshape(*ones, *last.shape), *bias]
    if "core" in factors:
        inner = first.reshape(*ones, *first.shape)
        return [piece("reduce", inner, **point), piece("core", factors["core"]), end]
    space = tuple(layer.kernel.shape[:-2])
    return [piece("reduce", first.reshape(*space, -1, first.shape[1])), end]
