"""Measuring and choosing: what a model loses under which compression."""

from keras_dlopt.auto.advising import Advice, Part, advise
from keras_dlopt.auto.by_recipe import Trained, find_rate, save_keras, train
from keras_dlopt.auto.compressed import Compressed, Trial
from keras_dlopt.auto.compressing import compress
from keras_dlopt.auto.deep import deep_compression
from keras_dlopt.auto.examples import examples_for
from keras_dlopt.auto.fitting import check_fits
from keras_dlopt.auto.int8 import Int8File, to_int8
from keras_dlopt.auto.named_recipes import RECIPES, recipe
from keras_dlopt.auto.sensitivity import sensitivity
from keras_dlopt.auto.sensitivity_result import Measurement, Sensitivity
from keras_dlopt.auto.within import TrainedWithin, Training, train_within

__all__ = [
    "RECIPES",
    "Advice",
    "Compressed",
    "Int8File",
    "Measurement",
    "Part",
    "Sensitivity",
    "Trained",
    "TrainedWithin",
    "Training",
    "Trial",
    "advise",
    "check_fits",
    "compress",
    "deep_compression",
    "examples_for",
    "find_rate",
    "recipe",
    "save_keras",
    "sensitivity",
    "to_int8",
    "train",
    "train_within",
]
