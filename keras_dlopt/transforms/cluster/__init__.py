"""Weight clustering: few shared values, found by k-means or by a trained mixture."""

from keras_dlopt import moved
from keras_dlopt.transforms.cluster.kmeans import kmeans, nearest
from keras_dlopt.transforms.cluster.mixture import SoftWeightSharing
from keras_dlopt.transforms.cluster.starts import (
    Density,
    KMeansPlusPlus,
    LinearStart,
    RandomStart,
    Start,
    start_of,
)
from keras_dlopt.transforms.cluster.transform import Cluster

__all__ = [
    "Cluster",
    "Density",
    "KMeansPlusPlus",
    "LinearStart",
    "RandomStart",
    "SoftWeightSharing",
    "Start",
    "kmeans",
    "nearest",
    "start_of",
]

__getattr__ = moved.names(__name__)
