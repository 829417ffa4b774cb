"""Callbacks: learning rates that follow the training, and guards."""

from keras_dlopt.callbacks.loss_driven import LossDrivenLearningRate

__all__ = ["LossDrivenLearningRate"]
