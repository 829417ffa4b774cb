"""Pruning: setting weights to zero and keeping them there."""

from keras_dlopt.transforms.prune.transform import Prune

__all__ = ["Prune"]
