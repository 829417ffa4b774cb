"""Recipes of int8 for a part of a model; the rest stays in float."""

from typing import Any

import keras

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import Target, activation_targets, weight_targets
from keras_dlopt.select import Selector, at, exact_paths
from keras_dlopt.transforms.recipe import Recipe


def without(model: keras.Model, recipe: Recipe, keep_float: Selector) -> Recipe:
    """The recipe, of what a selector means nothing quantized.

    An operation runs in int8 where its kernel and all that it takes and makes are
    quantized. What lacks one stays in float in the exported file and is named there.

    Args:
        model: the recipe is for.
        recipe: of kernels and activations; it stays as it is.
        keep_float: means weights, such as `at("logits/kernel")`, and activations.

    Raises:
        ConfigError: if nothing of the recipe is meant, or all of it.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
        >>> recipe = dlopt.int8.int8_recipe(net)
        >>> for s, _ in without(net, recipe, at("d/kernel")).entries:
        ...     print(s.paths)
        ('d/input',)
        ('d/output',)
    """
    entries: list[Any] = []
    known: list[str] = []
    kept: list[str] = []
    for selector, one in recipe.entries:
        targets = [t for t in _targets(model, one.kind, selector) if selector(t)]
        rest = [t.path for t in targets if not keep_float(t)]
        known += [t.path for t in targets]
        kept += rest
        if rest:
            whole = len(rest) == len(targets)
            entries.append((selector if whole else at(*rest), one))
    if len(kept) in (0, len(known)):
        what = "nothing" if kept else "everything"
        raise ConfigError(
            f"keep_float={keep_float!r} means {what} that would be quantized. Name "
            f"some of {known[:12]}{' and more' if len(known) > 12 else ''}."
        )
    return Recipe(entries)


def _targets(model: keras.Model, kind: str, selector: Selector) -> list[Target]:
    if kind == "activation":
        return activation_targets(model, exact_paths(selector))
    return weight_targets(model)
