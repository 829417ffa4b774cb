"""Whole-model int8: where quantizers belong, and the recipes that put them there."""

from keras_dlopt.int8.partly import without
from keras_dlopt.int8.preparing import prepare
from keras_dlopt.int8.recipes import int8_recipe, quantization_recipe
from keras_dlopt.int8.splitting import split_activations

__all__ = [
    "int8_recipe",
    "prepare",
    "quantization_recipe",
    "split_activations",
    "without",
]
