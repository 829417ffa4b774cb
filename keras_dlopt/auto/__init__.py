"""Measuring and choosing: what a model loses under which compression."""

from keras_dlopt.auto.compressed import Compressed, Trial
from keras_dlopt.auto.compressing import compress
from keras_dlopt.auto.deep import deep_compression
from keras_dlopt.auto.int8 import Int8File, to_int8
from keras_dlopt.auto.sensitivity import sensitivity
from keras_dlopt.auto.sensitivity_result import Measurement, Sensitivity

__all__ = [
    "Compressed",
    "Int8File",
    "Measurement",
    "Sensitivity",
    "Trial",
    "compress",
    "deep_compression",
    "sensitivity",
    "to_int8",
]
