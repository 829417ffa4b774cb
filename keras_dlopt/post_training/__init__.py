"""Quantizing trained models without training them again."""

from keras_dlopt.graph.folding import fold, fold_batch_normalization, foldable
from keras_dlopt.post_training.adaround import adaround
from keras_dlopt.post_training.bias import correct_bias
from keras_dlopt.post_training.calibrate import calibrate
from keras_dlopt.post_training.equalize import equalize
from keras_dlopt.post_training.float_parts import FloatParts
from keras_dlopt.post_training.mixed import (
    MixedPrecision,
    mixed_precision,
    sensitivity,
)
from keras_dlopt.post_training.normalization import recalibrate_batch_normalization
from keras_dlopt.post_training.quantize import dynamic_range, quantize
from keras_dlopt.post_training.rate_distortion import rate_distortion

__all__ = [
    "FloatParts",
    "MixedPrecision",
    "adaround",
    "calibrate",
    "correct_bias",
    "dynamic_range",
    "equalize",
    "fold",
    "fold_batch_normalization",
    "foldable",
    "mixed_precision",
    "quantize",
    "rate_distortion",
    "recalibrate_batch_normalization",
    "sensitivity",
]
