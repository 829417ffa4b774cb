"""Layers and blocks that are one: a recipe that ties them, a model that says so."""

import difflib
import functools
from collections.abc import Sequence
from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.rebuilding import Piece, rebuilt
from keras_dlopt.graph.targets import Target, weight_targets
from keras_dlopt.graph.walk import (
    as_functional,
    check_built,
    children,
    is_functional,
    walk,
)
from keras_dlopt.select import Selector, at
from keras_dlopt.transforms.finalize import finalize
from keras_dlopt.transforms.model import TransformedModel
from keras_dlopt.transforms.recipe import Recipe
from keras_dlopt.transforms.share import Share


def shared_recipe(
    model: keras.Model,
    blocks: Sequence[str],
    *,
    select: Selector | None = None,
    scale: bool = False,
    start: str = "mean",
) -> Recipe:
    """A recipe that ties blocks, each weight to its like in the others (ALBERT).

    Args:
        model: a built model.
        blocks: paths of layers or models in it, or the beginnings of names that `_` or
            `/` follows: `["block1", "block2"]` takes `block1/conv/kernel` and
            `block1_conv/kernel`.
        select: which of their weights; None for all that are trained. Statistics of
            BatchNormalization stay each block's own.
        scale: as in `Share`.
        start: as in `Share`.

    Returns:
        A `Recipe` with one `Share` a weight: plain data.

    Raises:
        ConfigError: for a block that is not there, with the nearest, and for blocks
            whose weights differ in name or shape.
        ModelError: for a model that is not built.

    Example:
        >>> from keras_dlopt import transform
        >>> net = keras.Sequential([keras.Input((4,)),
        ...     keras.layers.Dense(4, name="b1"), keras.layers.Dense(4, name="b2")])
        >>> tied = transform(net, shared_recipe(net, ["b1", "b2"]))
        >>> net.count_params(), tied.count_params()
        (40, 20)

    Source: Lan et al., "ALBERT" (arXiv:1909.11942), section 3.1.
    """
    check_built(model)
    blocks = checks.several(blocks, _text, name="blocks")
    if len(set(blocks)) < 2:
        raise ConfigError(
            f"blocks must be two or more different ones. Received: {list(blocks)}. "
            "Give the paths of the blocks to tie."
        )
    targets = [
        t
        for t in weight_targets(model)
        if t.variable.trainable and (select is None or select(t))
    ]
    found = [_of_block(model, targets, block) for block in blocks]
    names = list(found[0])
    for block, own in zip(blocks[1:], found[1:], strict=True):
        for name in dict.fromkeys([*names, *own]):
            one, other = found[0].get(name), own.get(name)
            if one is None or other is None or one.shape != other.shape:
                shapes = [None if t is None else t.shape for t in (one, other)]
                raise ConfigError(
                    f"{blocks[0]!r} and {block!r} differ in {name!r}: shapes "
                    f"{shapes[0]} and {shapes[1]}. Tie blocks of one kind, or select= "
                    "the weights that they have in common."
                )
    return Recipe(
        (at(*(own[name].path for own in found)), Share(scale=scale, start=start))
        for name in names
    )


def _text(value: Any, *, name: str, hint: str) -> str:
    return checks.instance(value, str, name=name, wanted="a path", hint=hint)


def _of_block(model: Any, targets: Sequence[Target], block: str) -> dict[str, Target]:
    """The weights of a block by what follows its name."""
    own = {
        t.path[len(block) + 1 :]: t
        for t in targets
        if t.path.startswith((f"{block}/", f"{block}_"))
    }
    if not own:
        known = [path for path, _, _ in walk(model) if path]
        close = difflib.get_close_matches(block, known, n=3) or known[:20]
        raise ConfigError(
            f"There is no trained weight in a block {block!r} of {model.name!r}. Near "
            f"it: {', '.join(map(repr, close))}."
        )
    return own


def shared_layers(model: TransformedModel) -> keras.Model:
    """A plain model in which tied layers are one layer, called several times.

    It computes what `finalize(model)` computes, and has, trains and stores the shared
    weights once, also in a `.keras` file. Layers and whole blocks become one where
    `Share` ties all their weights, without factors; others stay apart.

    Args:
        model: a transformed Sequential or Functional model with `Share`.

    Returns:
        A Functional model; what is one has the name of the first.

    Raises:
        ModelError: for anything else, and where no layers are tied as a whole.

    Example:
        >>> from keras_dlopt import transform
        >>> net = keras.Sequential([keras.Input((4,)),
        ...     keras.layers.Dense(4, name="b1"), keras.layers.Dense(4, name="b2")])
        >>> tied = transform(net, shared_recipe(net, ["b1", "b2"]))
        >>> shared_layers(tied).count_params()
        20
    """
    if not isinstance(model, TransformedModel) or not is_functional(model.model):
        raise ModelError(
            "shared_layers takes a Sequential or Functional model with Share, made by "
            f"keras_dlopt.transform. Received: {model!r}."
        )
    tied = {
        slot.target.path: id(slot.state["shared"])
        for group in model.groups
        if isinstance(group.transform, Share) and not group.transform.scale
        for slot in group.slots
    }
    plain = finalize(model)
    graph = as_functional(plain) or plain
    places = {id(t.variable): tied.get(t.path) for t in weight_targets(plain)}
    pieces = dict(_pieces(graph, places))
    if not pieces:
        raise ModelError(
            f"No two layers of {model.name!r} are tied as a whole, so none can be one. "
            "Tie their biases as well, as shared_recipe(model, blocks) does, or keep "
            "the model as finalize makes it."
        )
    return rebuilt(graph, pieces)


def _pieces(graph: Any, places: dict[int, Any]) -> Any:
    """What `rebuilt` puts in place of layers that are one, at any depth of graphs."""
    ones: dict[Any, list[Any]] = {}
    for layer in children(graph):
        ones.setdefault(_sign(layer, places) or id(layer), []).append(layer)
    for same in ones.values():
        if len(same) > 1 and not isinstance(graph, keras.Sequential):
            make = functools.cache(functools.partial(_one, same[0]))
            yield from ((id(layer), make) for layer in same)
        elif is_functional(same[0]):
            yield from _pieces(same[0], places)


def _one(layer: Any) -> list[Piece]:
    """The layer anew, the same for all that ask."""
    return [(type(layer).from_config(layer.get_config()), layer.get_weights())]


def _sign(layer: Any, places: dict[int, Any]) -> Any:
    """What layers have in common that compute the same; None where weights are own."""
    shared = [places.get(id(v)) for v in layer.weights]
    if not shared or None in shared:
        return None
    inside = [
        (type(one), repr(_unnamed(one.get_config())) if not children(one) else "")
        for _, one, _ in walk(layer)
    ]
    return tuple(inside), tuple(shared)


def _unnamed(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "name"}
