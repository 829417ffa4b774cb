"""Optimizers for `model.compile`: the classics made fast, and methods Keras lacks."""

from keras_dlopt.optimizers.adagrad import Adagrad
from keras_dlopt.optimizers.adam import Adam, AdamW
from keras_dlopt.optimizers.base import Optimizer
from keras_dlopt.optimizers.rmsprop import RMSprop
from keras_dlopt.optimizers.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Optimizer", "RMSprop"]
