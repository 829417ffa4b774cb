"""Layers replaced by the two or three smaller ones that their low-rank weights are."""

from functools import partial
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.rebuilding import rebuilt
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.transforms.finalize import finalize
from keras_dlopt.transforms.low_rank import LowRank
from keras_dlopt.transforms.model import TransformedModel, transform
from keras_dlopt.transforms.recipe import Recipe

_CONV = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
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
    layers = {t.path: t.layer for t in weight_targets(plain)}
    small = {
        id(layers[path]): (layers[path], factors)
        for path, factors in found.items()
        if _checked(layers[path], path) and _smaller(factors, layers[path])
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
            f"Nothing in {model.name!r} has low rank. Put LowRank(...) into the recipe."
        )
    return found


def _checked(layer: Any, path: str) -> bool:
    known = isinstance(layer, (keras.layers.Dense, *_CONV))
    if not known or getattr(layer, "groups", 1) != 1 or not path.endswith("kernel"):
        raise ConfigError(
            f"{path!r} of a {type(layer).__name__} cannot be split into layers: "
            "factorize knows Dense, Conv1D, Conv2D and Conv3D without groups. Leave it "
            "out of the recipe, or keep the model as finalize makes it."
        )
    return True


def _smaller(factors: Factors, layer: Any) -> bool:
    return sum(f.size for f in factors.values()) < np.prod(layer.kernel.shape)


def _pieces(layer: Any, factors: Factors) -> list[tuple[Any, list[np.ndarray]]]:
    """The layers in place of one, each with its weights."""
    config = layer.get_config()
    plain = {
        "use_bias": False,
        "activation": None,
        "kernel_regularizer": None,
        "activity_regularizer": None,
    }
    bias = [keras.ops.convert_to_numpy(layer.bias)] if layer.use_bias else []
    width, name = "filters", layer.name
    inner: dict[str, Any] = {}
    if isinstance(layer, keras.layers.Dense):
        width = "units"
    else:
        rank = len(layer.kernel_size)
        inner = {"kernel_size": (1,) * rank, "strides": (1,) * rank}
        inner |= {"dilation_rate": (1,) * rank, "padding": "valid"}
    ones = tuple(inner.get("kernel_size", ()))
    first, last = factors["first"], factors["last"]
    space = tuple(layer.kernel.shape[:-2])

    def piece(suffix, size, **changes):
        own = {**config, **plain, **changes, width: size, "name": f"{name}{suffix}"}
        return type(layer).from_config(own)

    final = type(layer).from_config({**config, **inner})
    end = (final, [last.reshape(*ones, *last.shape), *bias])
    if "core" in factors:
        core = factors["core"]
        return [
            (
                piece("_reduce", first.shape[1], **inner),
                [first.reshape(*ones, *first.shape)],
            ),
            (piece("_core", core.shape[-1]), [core]),
            end,
        ]
    kernel = first.reshape(*space, -1, first.shape[1])
    return [(piece("_reduce", first.shape[1]), [kernel]), end]
