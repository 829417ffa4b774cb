"""Models rebuilt from smaller layers."""

from keras_dlopt.surgery.blocks import ResidualBlock, remove_blocks
from keras_dlopt.surgery.dead import DeadChannels, remove_dead
from keras_dlopt.surgery.dependencies import (
    ChannelGroup,
    Dependencies,
    Pinned,
    dependencies,
)
from keras_dlopt.surgery.duplicates import merge_duplicates
from keras_dlopt.surgery.factorize import factorize
from keras_dlopt.surgery.finalizing import finalize
from keras_dlopt.surgery.hashing import hashed_layers, hashed_recipe
from keras_dlopt.surgery.opening import opened
from keras_dlopt.surgery.pruning import prune_channels
from keras_dlopt.surgery.report import RemovalReport, Removed
from keras_dlopt.surgery.scores import (
    ChannelNorm,
    ChannelScore,
    GeometricMedian,
    NormalizationScale,
)
from keras_dlopt.surgery.sharing import shared_layers, shared_recipe
from keras_dlopt.surgery.sizes import Sizes
from keras_dlopt.transforms.hashed_kernel import HashedKernel

__all__ = [
    "ChannelGroup",
    "ChannelNorm",
    "ChannelScore",
    "DeadChannels",
    "Dependencies",
    "GeometricMedian",
    "HashedKernel",
    "NormalizationScale",
    "Pinned",
    "RemovalReport",
    "Removed",
    "ResidualBlock",
    "Sizes",
    "dependencies",
    "factorize",
    "finalize",
    "hashed_layers",
    "hashed_recipe",
    "merge_duplicates",
    "opened",
    "prune_channels",
    "remove_blocks",
    "remove_dead",
    "shared_layers",
    "shared_recipe",
]
