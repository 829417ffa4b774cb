"""Channels that carry the same values: one can do the work of both."""

import hashlib
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_dlopt.graph.channels import input_axes
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.graph.kinds import PRODUCTS, calls_like
from keras_dlopt.graph.targets import Target
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.surgery.dead import remove_dead
from keras_dlopt.surgery.dependencies import Dependencies, dependencies
from keras_dlopt.surgery.report import RemovalReport
from keras_dlopt.surgery.survey import Place

_PASSES = (
    layers.BatchNormalization,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
    layers.PReLU,
)
Axis = tuple[Any, int, np.ndarray]  # a weight, an axis, its channels


def merge_duplicates(
    model: keras.Model, *, example: Any = None
) -> tuple[keras.Model, RemovalReport]:
    """The same function with one channel where several carry the same values.

    Two channels are the same if every weight that makes them or acts on them alone is:
    rows of kernels, biases, normalizations, depthwise kernels. Where they are read, the
    weights of both are added up and one of them leaves, as do channels that are dead.

    Args:
        model: a built Keras model, as for `remove_dead`; it stays as it is.
        example: a batch of inputs, for models that do not know their input's shape.

    Returns:
        A new model and a report, as of `remove_dead`.

    Raises:
        ModelError: for a model that cannot be traced, copied or built anew.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)),
        ...     keras.layers.Dense(3, activation="relu", name="a"),
        ...     keras.layers.Dense(2, name="b")])
        >>> kernel = net.get_layer("a").kernel.numpy()
        >>> kernel[:, 2] = kernel[:, 0]
        >>> net.get_layer("a").set_weights([kernel, np.zeros(3)])
        >>> merge_duplicates(net)[0].get_layer("a").units
        2
    """
    twin = copy_model(model)
    found = dependencies(twin, example=example)
    for keep, drop in duplicates(found):
        for variable, axis, ids in _read_axes(found.survey.places.values()):
            labels = found.labels[ids]
            value = np.moveaxis(to_numpy(variable).copy(), axis, 0)
            value[labels == keep] += value[labels == drop]
            value[labels == drop] = 0
            variable.assign(np.moveaxis(value, 0, axis))
    return remove_dead(twin, example=example)


def duplicates(found: Dependencies) -> list[tuple[int, int]]:
    """Pairs of groups of channels that carry the same: one to keep, one to drop."""
    places = found.survey.places.values()
    if any(place.arguments is not None for place in places):
        return []  # constants between layers may differ from channel to channel
    held = found.held.copy()
    for place in places:
        if not _known(place):
            for ids in _all_ids(place):
                held[found.labels[ids]] = True
    reads = _read_axes(places)
    read = {(id(variable), axis) for variable, axis, _ in reads}
    rows: dict[int, list[bytes]] = {}
    for place in places:
        for variable, axes in place.weights.values():
            for axis, ids in axes.items():
                if (id(variable), axis) not in read:
                    _note(rows, found.labels[ids], variable, axis)
    counts = [
        np.bincount(found.labels[ids], minlength=found.count) for _, _, ids in reads
    ]
    first: dict[tuple[bytes, ...], int] = {}
    pairs = []
    for group in sorted(rows):
        if not held[group]:
            keep = first.setdefault(tuple(rows[group]), group)
            if keep != group and all(n[keep] == n[group] for n in counts):
                pairs.append((keep, group))
    return pairs


def _all_ids(place: Place) -> list[np.ndarray]:
    weights = [ids for _, axes in place.weights.values() for ids in axes.values()]
    return [*weights, *(ids for ids, _ in place.sizes.values())]


def _known(place: Place) -> bool:
    """Whether a layer only reads channels, or acts on each for itself."""
    layer = place.operation
    if any(calls_like(layer, kind) for kind in PRODUCTS):
        return getattr(layer, "groups", 1) == 1
    return any(calls_like(layer, kind) for kind in _PASSES)


def _read_axes(places: Iterable[Place]) -> list[Axis]:
    """The axes of kernels along which channels are summed up."""
    found = []
    for place in places:
        if not any(calls_like(place.operation, kind) for kind in PRODUCTS):
            continue
        for variable, axes in place.weights.values():
            target = Target("kernel", "weight", variable, place.operation)
            for axis in input_axes(target, len(variable.shape)):
                if axis in axes:
                    found.append((variable, axis, axes[axis]))
    return found


def _note(
    rows: dict[int, list[bytes]], labels: np.ndarray, variable: Any, axis: int
) -> None:
    """Adds to each group what one weight holds for it."""
    moved = np.moveaxis(to_numpy(variable), axis, 0)
    # -0 and 0 are one number.
    table = np.ascontiguousarray(moved.reshape(len(labels), -1) + 0.0)
    whose = str(id(variable)).encode()
    for label, row in zip(labels.tolist(), table, strict=True):
        digest = hashlib.blake2b(row.tobytes(), key=whose, digest_size=16)
        rows.setdefault(label, []).append(digest.digest())
