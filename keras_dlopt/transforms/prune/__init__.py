"""Pruning: setting weights to zero and keeping them there."""

from keras_dlopt.transforms.prune.distribution import (
    ERK,
    BySensitivity,
    Distribution,
    Global,
    Uniform,
)
from keras_dlopt.transforms.prune.gates import L0
from keras_dlopt.transforms.prune.pattern import (
    Blocks,
    Columns,
    Filters,
    NofM,
    Pattern,
    Rows,
    Unstructured,
)
from keras_dlopt.transforms.prune.score import (
    SNIP,
    HessianDiagonal,
    Lamp,
    Magnitude,
    Movement,
    Random,
    Score,
    Taylor,
)
from keras_dlopt.transforms.prune.transform import Prune
from keras_dlopt.transforms.prune.variational import VariationalDropout

__all__ = [
    "ERK",
    "L0",
    "SNIP",
    "Blocks",
    "BySensitivity",
    "Columns",
    "Distribution",
    "Filters",
    "Global",
    "HessianDiagonal",
    "Lamp",
    "Magnitude",
    "Movement",
    "NofM",
    "Pattern",
    "Prune",
    "Random",
    "Rows",
    "Score",
    "Taylor",
    "Uniform",
    "Unstructured",
    "VariationalDropout",
]
