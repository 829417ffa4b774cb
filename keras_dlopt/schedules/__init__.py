"""Schedules: step -> float, one type for learning rate, sparsity, temperature, bits."""

from keras_dlopt.schedules.base import Schedule
from keras_dlopt.schedules.parts import Constant
from keras_dlopt.schedules.scaled import Scaled
from keras_dlopt.schedules.sparsity import ConstantSparsity, PolynomialSparsity

__all__ = [
    "Constant",
    "ConstantSparsity",
    "PolynomialSparsity",
    "Scaled",
    "Schedule",
]
