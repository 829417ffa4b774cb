"""Data sets in memory, split in three, and batches that do not stall."""

from keras_dlopt.data.dataset import Dataset
from keras_dlopt.data.loading import load
from keras_dlopt.data.pipeline import batches

__all__ = ["Dataset", "batches", "load"]
