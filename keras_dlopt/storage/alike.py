"""Whether two models are the same by all that can be read of them, without a run."""

from typing import Any

import keras
import numpy as np

from keras_dlopt.graph.walk import operations, walk

PLAIN = (bool, int, float, str, bytes, type(None))
SET_BY_KERAS = ("build", "quantize", "loss")
# Whose objects a layer makes from its config, and nobody else.
MADE = ("keras", "tensorflow", "inspect", "builtins")


def alike(model: keras.Model, other: keras.Model) -> bool:
    """Whether nothing is left that could make them predict differently.

    Both have one description, without names that are not Keras' own, and the same
    values. What could still differ is what somebody put on a layer beside its config:
    an attribute more, or with another value. False means only that it is not known.
    """
    if [v.path for v in model.weights] != [v.path for v in other.weights]:
        return False
    mine, its = (
        [part for _, part, *_ in [*walk(one), *operations(one)]]
        for one in (model, other)
    )
    return len(mine) == len(its) and all(map(_same, mine, its))


def _same(one: Any, other: Any) -> bool:
    """Whether two layers or operations have the same attributes, as far as is seen."""
    own = type(one)
    if own is not type(other) or own.__module__.split(".")[0] != "keras":
        return False
    if isinstance(one, keras.Model):  # compile and fit leave something there
        return not any(map(_patched, (one, other)))
    return _equal(vars(one), vars(other))


def _patched(model: Any) -> bool:
    """Whether a method of the class is another one in this model."""
    return any(
        callable(value) and callable(getattr(type(model), name, None))
        for name, value in vars(model).items()
        if name not in SET_BY_KERAS
    )


def _equal(one: Any, other: Any) -> bool:
    if one is other or isinstance(one, keras.Variable | keras.KerasTensor):
        return True
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if type(one) is not type(other):
        return False
    if isinstance(one, PLAIN):
        return bool(one == other)
    if isinstance(one, dict):
        return set(one) == set(other) and all(_equal(one[k], other[k]) for k in one)
    if hasattr(one, "__code__") and one.__code__ is not other.__code__:
        return False
    if isinstance(one, np.ndarray) or keras.ops.is_tensor(one):
        return np.array_equal(np.asarray(one), np.asarray(other))
    owner = one if hasattr(one, "__code__") else type(one)
    return str(owner.__module__).split(".")[0] in MADE
