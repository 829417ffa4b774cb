"""Weight transforms, and the models that run with them."""

from keras_dlopt import moved
from keras_dlopt.transforms.base import Chain, Context, Member, State, Transform
from keras_dlopt.transforms.cluster import Cluster, SoftWeightSharing
from keras_dlopt.transforms.finalize import finalize
from keras_dlopt.transforms.l2sp import L2SP
from keras_dlopt.transforms.layer import TransformedLayer
from keras_dlopt.transforms.low_rank import LowRank, low_rank_recipe
from keras_dlopt.transforms.low_rank_delta import Frozen, LowRankDelta
from keras_dlopt.transforms.model import TransformedModel, transform
from keras_dlopt.transforms.prune import L0, Prune, VariationalDropout
from keras_dlopt.transforms.quantize import (
    KL,
    LSQ,
    MSE,
    PACT,
    ActivationQuantizer,
    Binary,
    FakeQuant,
    FakeQuantActivation,
    IntegerCodes,
    LSQActivation,
    LSQPlusActivation,
    MinMax,
    MinMaxInteger,
    MovingAverage,
    PeakHold,
    Percentile,
    PowerOfTwo,
    Quantizer,
    SoftRounding,
    Ternary,
    TrainedTernary,
)
from keras_dlopt.transforms.random_code import MinimalRandomCode
from keras_dlopt.transforms.rate import RateAware
from keras_dlopt.transforms.recipe import Recipe
from keras_dlopt.transforms.share import HashedWeights, Share
from keras_dlopt.transforms.statistics import Statistics
from keras_dlopt.transforms.updating import UpdateTransforms

__all__ = [
    "KL",
    "L0",
    "L2SP",
    "LSQ",
    "MSE",
    "PACT",
    "ActivationQuantizer",
    "Binary",
    "Chain",
    "Cluster",
    "Context",
    "FakeQuant",
    "FakeQuantActivation",
    "Frozen",
    "HashedWeights",
    "IntegerCodes",
    "LSQActivation",
    "LSQPlusActivation",
    "LowRank",
    "LowRankDelta",
    "Member",
    "MinMax",
    "MinMaxInteger",
    "MinimalRandomCode",
    "MovingAverage",
    "PeakHold",
    "Percentile",
    "PowerOfTwo",
    "Prune",
    "Quantizer",
    "RateAware",
    "Recipe",
    "Share",
    "SoftRounding",
    "SoftWeightSharing",
    "State",
    "Statistics",
    "Ternary",
    "TrainedTernary",
    "Transform",
    "TransformedLayer",
    "TransformedModel",
    "UpdateTransforms",
    "VariationalDropout",
    "coding_hints",
    "finalize",
    "low_rank_recipe",
    "transform",
]

__getattr__ = moved.names(__name__, homes={"coding_hints": "coding"})
