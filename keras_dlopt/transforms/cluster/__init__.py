"""Weight clustering: few shared values, found by k-means or by a trained mixture."""

from keras_dlopt.transforms.cluster.kmeans import kmeans, nearest
from keras_dlopt.transforms.cluster.mixture import SoftWeightSharing
from keras_dlopt.transforms.cluster.starts import (
    Density,
    KMeansPlusPlus,
    Linear,
    Random,
    Start,
    start_of,
)
from keras_dlopt.transforms.cluster.transform import Cluster

__all__ = [
    "Cluster",
    "Density",
    "KMeansPlusPlus",
    "Linear",
    "Random",
    "SoftWeightSharing",
    "Start",
    "kmeans",
    "nearest",
    "start_of",
]
