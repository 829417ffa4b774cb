"""Schedules: step -> float, one type for learning rate, sparsity, temperature, bits."""

from keras_dlopt import moved
from keras_dlopt.schedules.base import Schedule
from keras_dlopt.schedules.cycles import CosineRestarts, Cyclical
from keras_dlopt.schedules.join import Join
from keras_dlopt.schedules.parts import Constant
from keras_dlopt.schedules.regrowth import (
    LotterySparsity,
    OneShotSparsity,
    RegrowSparsity,
)
from keras_dlopt.schedules.scaled import Scaled
from keras_dlopt.schedules.sparsity import ConstantSparsity, PolynomialSparsity
from keras_dlopt.schedules.warmup import (
    OneCycle,
    PowerCooldown,
    Warmup,
    WarmupStableDecay,
)

__all__ = [
    "Constant",
    "ConstantSparsity",
    "CosineRestarts",
    "Cyclical",
    "Join",
    "LotterySparsity",
    "OneCycle",
    "OneShotSparsity",
    "PolynomialSparsity",
    "PowerCooldown",
    "RegrowSparsity",
    "Scaled",
    "Schedule",
    "Warmup",
    "WarmupStableDecay",
    "plot",
]

__getattr__ = moved.names(__name__, homes={"plot": "plotting"})
