"""Data sets in memory, split in three, and batches that do not stall."""

from keras_dlopt.data import obfuscate, select
from keras_dlopt.data.dataset import Dataset
from keras_dlopt.data.loading import load
from keras_dlopt.data.pipeline import batches
from keras_dlopt.data.shards import (
    ShardReport,
    read_shards,
    verify_shards,
    write_shards,
)

__all__ = [
    "Dataset",
    "ShardReport",
    "batches",
    "load",
    "obfuscate",
    "read_shards",
    "select",
    "verify_shards",
    "write_shards",
]
