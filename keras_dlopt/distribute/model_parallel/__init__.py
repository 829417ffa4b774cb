"""One model on several devices: a split of its weights, or of its layers."""

from keras_dlopt.distribute.model_parallel.functional import FunctionalStep, State

__all__ = ["FunctionalStep", "State"]
