"""Quantization: few levels for weights and activations."""

from keras_dlopt.transforms.quantize.activation import FakeQuantActivation
from keras_dlopt.transforms.quantize.weight import FakeQuant

__all__ = ["FakeQuant", "FakeQuantActivation"]
