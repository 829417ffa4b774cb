"""Models rebuilt from smaller layers."""

from keras_dlopt.surgery.dead import DeadChannels, remove_dead
from keras_dlopt.surgery.dependencies import (
    ChannelGroup,
    Dependencies,
    Pinned,
    dependencies,
)
from keras_dlopt.surgery.factorize import factorize
from keras_dlopt.surgery.hashing import HashedKernel, hashed_layers
from keras_dlopt.surgery.report import RemovalReport, Removed

__all__ = [
    "ChannelGroup",
    "DeadChannels",
    "Dependencies",
    "HashedKernel",
    "Pinned",
    "RemovalReport",
    "Removed",
    "dependencies",
    "factorize",
    "hashed_layers",
    "remove_dead",
]
