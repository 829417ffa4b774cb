"""Schedules: step -> float, one type for learning rate, sparsity, temperature, bits."""

from keras_dlopt.schedules.base import Schedule
from keras_dlopt.schedules.sparsity import ConstantSparsity, PolynomialSparsity

__all__ = ["ConstantSparsity", "PolynomialSparsity", "Schedule"]
