"""A copy of a model's whole training state on the host."""

import keras
import numpy as np

from keras_dlopt.callbacks.preparing import state_of
from keras_dlopt.runtime import to_numpy


class Snapshot:
    """Weights, seeds and optimizer variables of a model at one moment.

    Args:
        model: compiled, built, and so its optimizers.
    """

    def __init__(self, model: keras.Model):
        self._held = [(v, to_numpy(v).copy()) for v in state_of(model)]

    def holds(self, variable: keras.Variable) -> bool:
        """Whether a variable still has the value of that moment."""
        value = next(held for v, held in self._held if v is variable)
        return bool(np.array_equal(value, to_numpy(variable)))

    def restore(self) -> None:
        """Gives every variable the value it had, to the bit."""
        for variable, value in self._held:
            variable.assign(value)
