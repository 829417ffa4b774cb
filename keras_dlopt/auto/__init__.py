"""Measuring and choosing: what a model loses under which compression."""

from keras_dlopt.auto.sensitivity import sensitivity
from keras_dlopt.auto.sensitivity_result import Measurement, Sensitivity

__all__ = ["Measurement", "Sensitivity", "sensitivity"]
