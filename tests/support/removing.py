"""Brute force for removal: the same channels, zeroed in place."""

import keras
import numpy as np

from keras_dlopt.graph.copying import copy_model
from keras_dlopt.runtime.values import to_numpy


def masked(model, found, gone):
    """A copy of a model in which every weight of the groups that leave is 0."""
    masks = {}
    for place in found.survey.places.values():
        for key, (variable, axes) in place.weights.items():
            mask = np.ones(variable.shape, "float32")
            for axis, ids in axes.items():
                shape = [1] * mask.ndim
                shape[axis] = -1
                mask = mask * found.stays(ids, gone).reshape(shape)
            masks[key] = mask
    twin = copy_model(model)
    for old, new in zip(model.variables, twin.variables, strict=True):
        if id(old) in masks:
            new.assign(to_numpy(old) * masks[id(old)])
    return twin


def drawn(found, share, rng):
    """Some of the free groups, none of them the last of a layer."""
    free = np.array([group.number for group in found.free], int)
    gone = np.zeros(found.count, bool)
    gone[rng.permutation(free)[: round(share * len(free))]] = True
    while (empty := found.emptied(gone)) is not None:
        gone[rng.choice(empty[1])] = False
    return gone


def randomized(model, seed=0):
    """Gives a model weights and statistics that show every mistake."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if not keras.backend.is_float_dtype(weight.dtype):
            continue
        value = rng.normal(size=weight.shape)
        if weight.name in ("moving_variance", "variance", "gamma", "alpha"):
            value = rng.uniform(0.5, 1.5, weight.shape)
        elif len(weight.shape) > 1:
            value *= np.sqrt(2 / max(np.prod(weight.shape[:-1]), 1))
        else:
            value *= 0.3
        weight.assign(value.astype("float32"))
    return model


def relative(one, other):
    """The greatest difference of two outputs, by the greatest number."""
    worst = 0.0
    pairs = zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True)
    for a, b in pairs:
        a, b = (np.asarray(keras.ops.convert_to_numpy(v), "float64") for v in (a, b))
        assert np.isfinite(a).all()
        assert a.shape == b.shape
        worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)))
    return worst
