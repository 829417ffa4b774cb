"""Training with differential privacy: DP-SGD in `fit`, and what it spends."""

from keras_dlopt.privacy.accounting import (
    Spent,
    epsilon,
    noise_multiplier,
    steps_within,
)
from keras_dlopt.privacy.making import private
from keras_dlopt.privacy.model import PrivateModel

__all__ = [
    "PrivateModel",
    "Spent",
    "epsilon",
    "noise_multiplier",
    "private",
    "steps_within",
]
