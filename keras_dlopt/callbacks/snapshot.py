"""A copy of a model's whole training state on the host."""

import keras

from keras_dlopt.runtime import to_numpy


class Snapshot:
    """Weights, seeds and optimizer variables of a model at one moment.

    Args:
        model: compiled and built.
    """

    def __init__(self, model: keras.Model):
        optimizer = model.optimizer
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        self._held = [
            (variable, to_numpy(variable).copy())
            for variable in [
                *model.trainable_variables,
                *model.non_trainable_variables,
                *optimizer.variables,
            ]
        ]

    def restore(self) -> None:
        """Gives every variable the value it had, to the bit."""
        for variable, value in self._held:
            variable.assign(value)
