"""Time: of a training step by part, and of predictions in turns."""

from keras_dlopt.measure.latency import Latency, latency
from keras_dlopt.measure.profile import StepProfile, profile_fit

__all__ = ["Latency", "StepProfile", "latency", "profile_fit"]
