"""Quantization: few levels for weights and activations."""

from keras_dlopt import moved
from keras_dlopt.transforms.quantize.activation_methods import (
    PACT,
    FakeQuantActivation,
    LSQActivation,
    LSQPlusActivation,
)
from keras_dlopt.transforms.quantize.activation_quantizer import ActivationQuantizer
from keras_dlopt.transforms.quantize.codes import IntegerCodes, SoftRounding
from keras_dlopt.transforms.quantize.gradients import (
    LearnedLevel,
    LearnedLevels,
    LearnedStep,
    StraightThrough,
    ThroughScale,
)
from keras_dlopt.transforms.quantize.grids import (
    BinaryGrid,
    IntegerGrid,
    MinMaxGrid,
    PowerOfTwoGrid,
    TernaryGrid,
)
from keras_dlopt.transforms.quantize.observers import (
    KL,
    MSE,
    MinMax,
    MovingAverage,
    Observer,
    PeakHold,
    Percentile,
)
from keras_dlopt.transforms.quantize.quantizer import Quantizer
from keras_dlopt.transforms.quantize.starts import (
    FromMagnitude,
    FromMeans,
    FromRange,
    GivenRange,
)
from keras_dlopt.transforms.quantize.weight_methods import (
    LSQ,
    Binary,
    FakeQuant,
    MinMaxInteger,
    PowerOfTwo,
    Ternary,
    TrainedTernary,
)

__all__ = [
    "KL",
    "LSQ",
    "MSE",
    "PACT",
    "ActivationQuantizer",
    "Binary",
    "BinaryGrid",
    "FakeQuant",
    "FakeQuantActivation",
    "FromMagnitude",
    "FromMeans",
    "FromRange",
    "GivenRange",
    "IntegerCodes",
    "IntegerGrid",
    "LSQActivation",
    "LSQPlusActivation",
    "LearnedLevel",
    "LearnedLevels",
    "LearnedStep",
    "MinMax",
    "MinMaxGrid",
    "MinMaxInteger",
    "MovingAverage",
    "Observer",
    "PeakHold",
    "Percentile",
    "PowerOfTwo",
    "PowerOfTwoGrid",
    "Quantizer",
    "SoftRounding",
    "StraightThrough",
    "Ternary",
    "TernaryGrid",
    "ThroughScale",
    "TrainedTernary",
]

__getattr__ = moved.names(__name__)
