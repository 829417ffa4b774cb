"""Data sets in memory, split in three, and batches that do not stall."""

from keras_dlopt.data import augment, obfuscate, select
from keras_dlopt.data.dataset import Dataset
from keras_dlopt.data.loading import load
from keras_dlopt.data.pipeline import batches
from keras_dlopt.data.shards import (
    ReadSpeed,
    ShardReport,
    read_shards,
    read_speed,
    verify_shards,
    write_shards,
)

__all__ = [
    "Dataset",
    "ReadSpeed",
    "ShardReport",
    "augment",
    "batches",
    "load",
    "obfuscate",
    "read_shards",
    "read_speed",
    "select",
    "verify_shards",
    "write_shards",
]
