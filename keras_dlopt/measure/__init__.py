"""What a model costs: work, memory, time of a prediction and of a training step."""

from keras_dlopt.measure.costs import Costs, LayerCost, costs
from keras_dlopt.measure.latency import Latency, latency
from keras_dlopt.measure.npu import NpuEstimate, npu_estimate
from keras_dlopt.measure.profile import StepProfile, profile_fit

__all__ = [
    "Costs",
    "Latency",
    "LayerCost",
    "NpuEstimate",
    "StepProfile",
    "costs",
    "latency",
    "npu_estimate",
    "profile_fit",
]
