"""Data sets in compressed files that are read as fast as they train."""

from keras_dlopt.data.shards.reading import read_shards
from keras_dlopt.data.shards.whole import ReadSpeed, read_speed, verify_shards
from keras_dlopt.data.shards.writing import ShardReport, write_shards

__all__ = [
    "ReadSpeed",
    "ShardReport",
    "read_shards",
    "read_speed",
    "verify_shards",
    "write_shards",
]
