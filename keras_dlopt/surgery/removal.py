"""A model anew without some of its channels."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import keras
import numpy as np
from keras.saving import custom_object_scope

from keras_dlopt.errors import ModelError
from keras_dlopt.graph import live
from keras_dlopt.graph.rebuilding import Piece, Reshaped, like, rebuilt
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.surgery.dependencies import Dependencies
from keras_dlopt.surgery.survey import Place

Biases = Mapping[int, tuple[np.ndarray, np.ndarray]]


def without(
    found: Dependencies, gone: np.ndarray, biases: Biases | None = None
) -> keras.Model:
    """The model anew, smaller.

    Args:
        found: of the model.
        gone: for each group, whether it leaves; none of them is held.
        biases: id of a layer -> ids of all its outputs, and what is added to the bias
            of each.

    Returns:
        A model of the original kind, with the same names and compiled state.

    Raises:
        ModelError: if a layer would lose all channels, or cannot be built anew.
    """
    empty = found.emptied(gone)
    if empty is not None:
        raise ModelError(
            f"{empty[0]!r} would lose all of its {len(empty[1])} channels. Keep at "
            "least one of them."
        )
    biases = biases or {}
    pieces: dict[int, Any] = {}
    arguments: dict[int, Any] = {}
    kept = partial(found.stays, gone=gone)
    for place in found.survey.places.values():
        extra = biases.get(id(place.operation))
        if extra is not None or _touched(place, kept):
            pieces[id(place.operation)] = partial(_piece, place, kept, extra)
        if place.arguments is not None:
            arguments[id(place.operation)] = partial(place.arguments, kept)
    shapes = {}
    for key, given in found.survey.shapes.items():
        shapes[key] = [(one.axis, int(kept(one.ids).sum()), one.n) for one in given]
    source = found.survey.source
    with live.named_functions(source) as names, custom_object_scope(names):
        small = rebuilt(source, pieces, Reshaped(shapes, arguments))
    live.carry_settings(source, small)
    return small


def _touched(place: Place, kept: Any) -> bool:
    ids = [one for _, axes in place.weights.values() for one in axes.values()]
    ids += [one for one, _ in place.sizes.values()]
    return not all(kept(one).all() for one in ids)


def _piece(place: Place, kept: Any, extra: Any) -> list[Piece]:
    operation = place.operation
    config = dict(operation.get_config())
    for ids, write in place.sizes.values():
        write(config, kept(ids))
    if not isinstance(operation, keras.layers.Layer):
        return [(type(operation).from_config(config), [])]
    weights = [
        cut(to_numpy(v), place.weights.get(id(v), (None, {}))[1], kept)
        for v in operation.weights
    ]
    if extra is not None:
        outputs, added = extra
        added = added[kept(outputs)]
        if not operation.use_bias:
            config["use_bias"] = True
            weights.append(added.astype("float32"))
        else:
            at = next(i for i, v in enumerate(operation.weights) if v is operation.bias)
            weights[at] = (weights[at] + added).astype(weights[at].dtype)
    return [(like(operation, **config), weights)]


def cut(value: np.ndarray, axes: Mapping[int, np.ndarray], kept: Any) -> np.ndarray:
    """An array without the channels that leave.

    Args:
        value: the array.
        axes: axis -> ids along it.
        kept: ids -> whether each stays.
    """
    for axis, ids in axes.items():
        value = np.compress(kept(ids), value, axis=axis)
    return value
