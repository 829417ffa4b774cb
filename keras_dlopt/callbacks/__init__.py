"""Callbacks: learning rates that follow the training, searches, and a guard."""

from keras_dlopt.callbacks.averaged import AveragedWeights
from keras_dlopt.callbacks.compression import CompressionLogger
from keras_dlopt.callbacks.finder import LearningRateFinder, RangeTest
from keras_dlopt.callbacks.guard import DivergenceGuard
from keras_dlopt.callbacks.hypergradient import HypergradientLearningRate
from keras_dlopt.callbacks.loss_driven import LossDrivenLearningRate
from keras_dlopt.callbacks.momentum import ScheduledMomentum
from keras_dlopt.callbacks.normalization import FreezeBatchNormalization
from keras_dlopt.callbacks.plateau import ReduceOnPlateau
from keras_dlopt.callbacks.search import LearningRateSearch, SearchResult

__all__ = [
    "AveragedWeights",
    "CompressionLogger",
    "DivergenceGuard",
    "FreezeBatchNormalization",
    "HypergradientLearningRate",
    "LearningRateFinder",
    "LearningRateSearch",
    "LossDrivenLearningRate",
    "RangeTest",
    "ReduceOnPlateau",
    "ScheduledMomentum",
    "SearchResult",
]
