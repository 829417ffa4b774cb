"""Recipes by name, or from a file."""

import difflib
import os
import pathlib
import re
from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.auto.goals import WEIGHTS, Strength
from keras_dlopt.errors import ConfigError
from keras_dlopt.files import MAX_JSON, read_limited
from keras_dlopt.int8 import int8_recipe
from keras_dlopt.transforms import Chain, FakeQuant, Recipe, Transform

# Whole names. In the others the numbers are examples: any share of zeros in percent,
# any number of shared values.
RECIPES = {
    "int8": "weights and activations of 8 bits, for LiteRT",
    "pruned-80": "80 % of the kernels' values zero",
    "clustered-16": "16 shared values a kernel",
    "pruned-80-clustered-16": "both",
    "deep-compression": "90 % zeros and 16 shared values a kernel",
    "pruned-80-int8": "zeros and 8 bits, for LiteRT",
    "clustered-16-int8": "shared values and 8 bits, for LiteRT",
    "pruned-80-clustered-16-int8": "all three",
}
_SAME = {"deep-compression": "pruned-90-clustered-16"}
_NAME = re.compile(
    r"(pruned-(?P<zeros>\d{1,2}(\.\d{1,3})?)(-(?!$)|$))?"
    r"(clustered-(?P<values>\d{1,5})(-(?!$)|$))?(?P<int8>int8)?"
)


def recipe(
    name: str | os.PathLike[str],
    model: keras.Model | None = None,
    *,
    steps: int | None = None,
) -> Recipe:
    """A recipe by its name, or from a file.

    | name | what it does |
    |---|---|
    | `int8` | weights and activations of 8 bits, for LiteRT |
    | `pruned-80` | 80 % of the kernels' values zero |
    | `clustered-16` | 16 shared values a kernel |
    | `pruned-80-clustered-16` | both |
    | `deep-compression` | the same as `pruned-90-clustered-16` |
    | `pruned-80-int8`, `clustered-16-int8` | with 8 bits, for LiteRT |

    The numbers are examples: `pruned-97.5-int8`, `clustered-32`. Zeros go where LAMP
    scores of all kernels are lowest, and are there after 45 % of the steps; values are
    shared after 75 %.

    Args:
        name: as above, or a file ending in `.json` that holds `Recipe.to_json()`.
        model: a built Keras model, for the names with `int8`, which place quantizers by
            its graph.
        steps: of the training that follows; None does everything at the first step.

    Raises:
        ConfigError: for a name that is not known, a file that holds no recipe, and for
            `int8` without a model.

    Example:
        >>> recipe("pruned-80", steps=1000).entries[0][1].sparsity.end
        450
        >>> recipe("prunned-80")
        Traceback (most recent call last):
        keras_dlopt.errors.ConfigError: There is no recipe 'prunned-80'. Did you mean \
'pruned-80'? Names are int8, pruned-80, clustered-16, pruned-80-clustered-16, \
deep-compression, pruned-80-int8, clustered-16-int8, pruned-80-clustered-16-int8, with \
any numbers, or a .json file.

    Source: Han et al., "Deep Compression" (arXiv:1510.00149); Lee et al., "Layer-
    adaptive Sparsity" (arXiv:2010.07611).
    """
    given = os.fspath(name)
    if given.endswith(".json"):
        return Recipe.from_json(read_limited(pathlib.Path(given), MAX_JSON).decode())
    found = _NAME.fullmatch(_SAME.get(given, given))
    if not found or not found[0] or float(found["zeros"] or 1) == 0:
        raise ConfigError(_unknown(given))
    steps = checks.optional(checks.count, steps, name="steps")
    zeros, values = float(found["zeros"] or 0) / 100, found["values"]
    chain = _chain(given, zeros, values, steps)
    if not found["int8"]:
        return Recipe([(WEIGHTS, chain)])
    if model is None:
        raise ConfigError(
            f"The recipe {given!r} places quantizers by the model's graph. Pass the "
            f"model: recipe({given!r}, model)."
        )
    return int8_recipe(model, weights=chain)


def _chain(name: str, zeros: float, values: str | None, steps: int | None) -> Any:
    """What is done to the kernels; it ends in 8 bits unless the name says otherwise."""
    if values is not None and int(values) < 2:
        raise ConfigError(
            f"A kernel has 2 shared values or more. Received: {name!r}. Take "
            "clustered-16, or more."
        )
    strength = Strength(zeros, None if values is None else int(values))
    chain: Transform = strength.recipe(steps).entries[0][1]
    eight = name.endswith("int8")
    if values is not None:
        return chain >> FakeQuant(bits=8) if eight else chain
    if not eight and isinstance(chain, Chain):
        return chain.links[0]
    return chain


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"There is no recipe {name!r}.{hint} Names are {', '.join(RECIPES)}, with any "
        "numbers, or a .json file."
    )
