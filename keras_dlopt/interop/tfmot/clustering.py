"""Clustering under TFMOT's names."""

import contextlib
import enum
from typing import Any

import keras
import numpy as np

from keras_dlopt.config import frozen
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.interop.tfmot.wrapping import WEIGHTS, wrap
from keras_dlopt.select import inside
from keras_dlopt.transforms import Cluster, Recipe, TransformedModel, finalize
from keras_dlopt.transforms.cluster import Start

# The settings of TFMOT's own search.
GRID, GAP, LOWEST, KMEANS_SEED = 30, 0.01, 0.01, 9


class CentroidInitialization(enum.StrEnum):
    """`tfmot.clustering.keras.CentroidInitialization`."""

    LINEAR = "CentroidInitialization.LINEAR"
    RANDOM = "CentroidInitialization.RANDOM"
    DENSITY_BASED = "CentroidInitialization.DENSITY_BASED"
    KMEANS_PLUS_PLUS = "CentroidInitialization.KMEANS_PLUS_PLUS"


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class GridDensity(Start):
    """TFMOT's density-based start: the distribution function on a grid of 30 points.

    Each of evenly spaced probabilities takes the first grid point whose cumulative
    share exceeds it, so that more than 30 clusters fall together. `"density"` is the
    exact form.

    Args:
        near_zero: narrows the gap at both ends, as TFMOT does to keep zeros apart.
    """

    near_zero: bool = False

    def __call__(self, values, clusters, *, seed):
        values = np.asarray(values, "float32")
        low, high = values.min(), values.max()
        gap = np.float32(GAP)
        if self.near_zero:
            gap = min(gap, min(abs(low), abs(high)) / np.float32(2))
        grid = np.linspace(low - gap, high + gap, GRID, dtype="float32")
        below = np.searchsorted(np.sort(values), grid, side="right")
        share = below.astype("float32") / np.float32(values.size)
        wanted = np.linspace(LOWEST, 1, clusters, dtype="float32")
        place = np.minimum(np.searchsorted(share, wanted, side="right"), GRID - 1)
        before = np.maximum(place - 1, 0)
        # TFMOT solves a line for the point it already has: the same but for rounding.
        rise, x, y = share[before] - share[place], grid[place], share[place]
        slope = np.where(rise == 0, np.float32(1), rise) / np.float32(0.001)
        solved = (y - (y - x * slope)) / slope
        return np.where(rise == 0, x, solved).astype("float64")


@keras.saving.register_keras_serializable("keras_dlopt")
class TensorFlowKMeansPlusPlus(Start):
    """TensorFlow's own k-means++ draws, with the seed that TFMOT fixes."""

    def __call__(self, values, clusters, *, seed):
        import tensorflow as tf

        points = tf.constant(np.reshape(values, (-1, 1)), "float32")
        drawn = tf.raw_ops.KmeansPlusPlusInitialization(
            points=points,
            num_to_sample=tf.constant(clusters, "int64"),
            seed=tf.constant(KMEANS_SEED, "int64"),
            num_retries_per_sample=tf.constant(-1, "int64"),
        )
        return drawn.numpy().ravel().astype("float64")


def _start(initial: Any, zeros: bool) -> str | Start:
    try:
        initial = CentroidInitialization(getattr(initial, "value", initial))
    except ValueError:
        raise ConfigError(
            "cluster_centroids_init must be a member of CentroidInitialization: "
            f"{[m.name for m in CentroidInitialization]}. Received: {initial!r}."
        ) from None
    starts: dict[CentroidInitialization, str | Start] = {
        CentroidInitialization.LINEAR: "linear",
        CentroidInitialization.RANDOM: "random",
        CentroidInitialization.DENSITY_BASED: GridDensity(near_zero=zeros),
        CentroidInitialization.KMEANS_PLUS_PLUS: TensorFlowKMeansPlusPlus(),
    }
    return starts[initial]


def cluster_weights(
    to_cluster: Any,
    number_of_clusters: int,
    cluster_centroids_init: Any = CentroidInitialization.KMEANS_PLUS_PLUS,
    preserve_sparsity: bool = False,
    cluster_per_channel: bool = False,
    reassign: int = 1,
    **kwargs: Any,
) -> Any:
    """`tfmot.clustering.keras.cluster_weights`.

    As there, the starting points are the first centroids (no k-means steps), centroids
    and weights are both trained, and each weight takes the nearest centroid.

    Args:
        to_cluster: a built model of any kind, a layer, or a list of layers.
        number_of_clusters: shared values of each weight; with `preserve_sparsity`, zero
            is one of them.
        cluster_centroids_init: a member of `CentroidInitialization`.
        preserve_sparsity: whether zeros stay zero. Only exact zeros do; TFMOT also
            zeroes the weights that are nearest to zero at the start.
        cluster_per_channel: whether each output channel of a 2-D convolution has values
            of its own.
        reassign: steps between two searches for the nearest centroid. 1 is what TFMOT
            does; 100 costs next to nothing.
        **kwargs: of the new layer.

    Returns:
        A `TransformedModel`, a `TransformedLayer`, or a list of them. The model is a
        copy: the original keeps its weights.

    Raises:
        ConfigError: for what cannot be clustered, and for arguments out of range.

    Example:
        >>> net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> clustered = cluster_weights(net, number_of_clusters=8)
        >>> len(np.unique(strip_clustering(clustered).layers[0].kernel))
        8
    """
    zeros = bool(preserve_sparsity)
    if zeros and number_of_clusters < 3:
        raise ConfigError(
            "With preserve_sparsity zero is one of the clusters, so at least 3 are "
            f"needed. Received: number_of_clusters={number_of_clusters}."
        )

    def cluster(per_channel):
        return Cluster(
            number_of_clusters - zeros,
            initial=_start(cluster_centroids_init, zeros),
            per_channel=per_channel,
            iterations=0,
            reassign=reassign,
            preserve_zeros=zeros,
            split_signs=zeros,
        )

    def recipe(layer):
        images = inside(keras.layers.Conv2D)
        selectors = (WEIGHTS & images, WEIGHTS & ~images)
        if not cluster_per_channel:
            return Recipe([(WEIGHTS, cluster(False))])
        if not isinstance(layer, keras.Model):
            per_channel = isinstance(layer, keras.layers.Conv2D)
            return Recipe([(WEIGHTS, cluster(per_channel))])
        targets = weight_targets(layer)
        return Recipe(
            (selector, cluster(selector is selectors[0]))
            for selector in selectors
            if any(map(selector, targets))
        )

    made = wrap(to_cluster, recipe, function="cluster_weights", **kwargs)
    if isinstance(made, TransformedModel):
        made.update_transforms(0)  # so that it can be stripped at once
    return made


def strip_clustering(model: keras.Model) -> keras.Model:
    """`tfmot.clustering.keras.strip_clustering`: plain, with the shared values."""
    return finalize(model)


def cluster_scope() -> contextlib.AbstractContextManager:
    """`tfmot.clustering.keras.cluster_scope`: not needed, files load without it."""
    return contextlib.nullcontext()
