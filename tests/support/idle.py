"""Brute force for what is dead: channels are zeroed where they are read."""

import keras
import numpy as np
from keras import ops

from keras_dlopt.graph import hooks


def _without(labels, group, axis, hold):
    keep = (labels != group).astype("float32")

    def function(x):
        shape = [1] * len(x.shape)
        shape[axis] = -1
        mask = ops.reshape(ops.convert_to_tensor(keep), shape)
        # One value of the channel, the same as all others if it is constant.
        first = [slice(0, 1)] * len(x.shape)
        first[axis] = slice(None)
        held = x[tuple(first)] if hold else 0.0
        return x * mask + held * (1 - mask)

    return function


def _outputs(model, x):
    made = keras.tree.flatten(model(x, training=False))
    return [np.asarray(ops.convert_to_numpy(y), "float64") for y in made]


def idle_groups(model, found, x, groups, *, hold=False):
    """Those of some groups of channels without which no output changes.

    Args:
        model: that was examined.
        found: its dependencies.
        x: inputs.
        groups: to try, each by itself.
        hold: whether the channel becomes one of its values, and not 0.
    """
    readers: dict[int, list] = {}
    for read in found.survey.reads:
        labels = found.labels[read.facts.ids]
        for group in set(labels.tolist()):
            place = (read.place.operation, labels, read.facts.axis)
            readers.setdefault(group, []).append(place)
    before = _outputs(model, x)
    idle = set()
    for group in groups:
        places = {
            id(layer): (layer, labels, axis)
            for layer, labels, axis in readers.get(group, [])
        }
        with hooks.hooked(
            (layer, hooks.on("input", _without(labels, group, axis, hold)))
            for layer, labels, axis in places.values()
        ):
            after = _outputs(model, x)
        pairs = zip(before, after, strict=True)
        # What is held may be read by weights next to 0; without, to the last bit.
        share = 1e-5 if hold else 0.0
        if all(
            np.abs(a - b).max() <= share * max(np.abs(a).max(), 1e-9) for a, b in pairs
        ):
            idle.add(group)
    return idle


def read_groups(found):
    """The groups that nothing holds and that only dense layers and convolutions read.

    What a recurrent layer reads of its own state cannot be zeroed from outside.
    """
    plain = (keras.layers.Dense, keras.layers.Conv1D)
    plain += (keras.layers.Conv2D, keras.layers.Conv3D)
    read, other = set(), set()
    for one in found.survey.reads:
        known = isinstance(one.place.operation, plain)
        (read if known else other).update(found.labels[one.facts.ids].tolist())
    return sorted(g for g in read - other if not found.held[g])
