"""The optimizer's state of what survives a removal."""

from typing import Any

import numpy as np

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.surgery.dependencies import Dependencies
from keras_dlopt.surgery.removal import Biases, cut

Slots = dict[str, list[tuple[str, Any]]]


def carry_optimizer(
    model: Any, small: Any, found: Dependencies, gone: np.ndarray, biases: Biases
) -> None:
    """Gives the smaller model's optimizer the state of the weights that survived.

    Moments, accumulated gradients, averages of weights (`use_ema`), the count of steps
    and the learning rate go over, each cut as its weight was. Biases that took up
    constants took them up on average, too.

    Args:
        model: the old one, compiled, its optimizer built.
        small: the new one.
        found: the dependencies of the old one.
        gone: for each group, whether it left.
        biases: as `without` took them.

    Raises:
        ModelError: if there is no state, or it is not kept by weight.
    """
    old = getattr(model, "optimizer", None)
    if old is None or not old.built:
        raise ModelError(
            f"The optimizer of {model.name!r} has no state to carry over. Compile and "
            "fit the model first, or leave out optimizer_state."
        )
    ours, shared = _slots(found.survey.source, model.trainable_variables, old)
    new = small.optimizer
    if not new.built:
        new.build(small.trainable_variables)
    theirs, new_shared = _slots(small, small.trainable_variables, new)
    fits = [v.shape for v in shared] == [v.shape for v in new_shared]
    fits = fits and all(
        [name for name, _ in ours[path]] == [name for name, _ in slots]
        for path, slots in theirs.items()
        if path in ours
    )
    if not fits:
        raise ModelError(
            f"{type(old).__name__} keeps state that belongs to no single weight, which "
            "cannot be cut. Leave out optimizer_state, or use another optimizer."
        )
    for one, other in zip(shared, new_shared, strict=True):
        other.assign(to_numpy(one))
    _assign(_values(ours, found, gone, biases), theirs, small)


def _slots(model: Any, variables: list[Any], optimizer: Any) -> tuple[Slots, list[Any]]:
    """Path of a weight -> its slots, in order, and what belongs to no weight.

    Args:
        model: tells the paths.
        variables: that the optimizer was built for.
        optimizer: built; another of its kind tells whose its slots are.
    """
    twin = type(optimizer).from_config(optimizer.get_config())
    seen = _compat.build_seen(twin, variables)
    paths = {id(t.variable): t.path for t in weight_targets(model)}
    slots: Slots = {}
    shared = []
    for mark, variable in zip(twin.variables, optimizer.variables, strict=True):
        weight, name = seen.get(id(mark), (None, ""))
        if weight is None or id(weight) not in paths:
            shared.append(variable)
        else:
            slots.setdefault(paths[id(weight)], []).append((name, variable))
    return slots, shared


def _values(
    slots: Slots, found: Dependencies, gone: np.ndarray, biases: Biases
) -> dict[str, list[np.ndarray]]:
    """Path of a weight -> the values of its slots, cut."""
    holders = {
        key: place for place in found.survey.places.values() for key in place.weights
    }
    values = {}
    for target in weight_targets(found.survey.source):
        rows = []
        for name, slot in slots.get(target.path, ()):
            value = to_numpy(slot)
            added = biases.get(id(target.layer))
            if added is not None and name == "average" and target.name == "bias":
                value = value + added[1].astype(value.dtype)
            place = holders.get(id(target.variable))
            if place is not None and value.shape == tuple(target.variable.shape):
                axes = place.weights[id(target.variable)][1]
                value = cut(value, axes, lambda ids: found.stays(ids, gone))
            rows.append(value)
        if rows:
            values[target.path] = rows
    return values


def _assign(values: dict[str, list[np.ndarray]], slots: Slots, small: Any) -> None:
    weights = {t.path: t.variable for t in weight_targets(small)}
    for path, found in slots.items():
        if path not in values:  # a bias that was made for a constant
            for name, slot in found:
                if name == "average":
                    slot.assign(to_numpy(weights[path]))
            continue
        for value, (_, slot) in zip(values[path], found, strict=True):
            slot.assign(value)
