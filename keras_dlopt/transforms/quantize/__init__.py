"""Quantization: few levels for weights and activations."""

from keras_dlopt.transforms.quantize.activation import FakeQuantActivation
from keras_dlopt.transforms.quantize.batch_norm import FreezeBatchNormalization
from keras_dlopt.transforms.quantize.codes import IntegerCodes
from keras_dlopt.transforms.quantize.few_levels import Binary, Ternary, TrainedTernary
from keras_dlopt.transforms.quantize.levels import MinMaxInteger, PowerOfTwo
from keras_dlopt.transforms.quantize.lsq import LSQ
from keras_dlopt.transforms.quantize.lsq_activation import (
    LSQActivation,
    LSQPlusActivation,
)
from keras_dlopt.transforms.quantize.observers import (
    KL,
    MSE,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
)
from keras_dlopt.transforms.quantize.pact import PACT
from keras_dlopt.transforms.quantize.soft_rounding import SoftRounding
from keras_dlopt.transforms.quantize.weight import FakeQuant

__all__ = [
    "KL",
    "LSQ",
    "MSE",
    "PACT",
    "Binary",
    "FakeQuant",
    "FakeQuantActivation",
    "FreezeBatchNormalization",
    "IntegerCodes",
    "LSQActivation",
    "LSQPlusActivation",
    "MinMax",
    "MinMaxInteger",
    "MovingAverage",
    "Observer",
    "Percentile",
    "PowerOfTwo",
    "SoftRounding",
    "Ternary",
    "TrainedTernary",
]
