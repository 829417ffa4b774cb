"""Weight clustering: few shared values, trained together."""

from typing import Literal

import keras
import numpy as np
from keras import ops

from keras_dlopt.codecs.hints import Codebook
from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.lookup import lookup


def initial_centroids(
    values: np.ndarray, clusters: int, *, method: str, seed: int
) -> np.ndarray:
    """Starting points for k-means on numbers, ascending.

    Args:
        values: the numbers, sorted ascending, at least one.
        clusters: how many starting points.
        method: `"linear"`, evenly spaced from the smallest to the largest number, or
            `"kmeans++"`, drawn with probability proportional to the squared distance to
            the nearest one drawn before.
        seed: for the draws.
    """
    if method == "linear":
        return np.linspace(values[0], values[-1], clusters)
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(values)]
    distance = np.square(values - chosen[0])
    for _ in range(clusters - 1):
        total = np.cumsum(distance)
        if total[-1] == 0:  # fewer different numbers than clusters
            chosen.append(values[-1])
            continue
        chosen.append(values[np.searchsorted(total, rng.uniform(0, total[-1]))])
        distance = np.minimum(distance, np.square(values - chosen[-1]))
    return np.sort(chosen)


def kmeans(values: np.ndarray, centroids: np.ndarray, *, steps: int) -> np.ndarray:
    """Lloyd's algorithm on numbers: O(k log n) a step once they are sorted.

    Args:
        values: the numbers, sorted ascending.
        centroids: starting points, ascending.
        steps: at most this many; it stops earlier when nothing moves.

    Returns:
        The centroids, ascending; one whose cluster is empty stays where it is.
    """
    sums = np.concatenate([[0.0], np.cumsum(values, dtype="float64")])
    centroids = np.asarray(centroids, "float64")
    for _ in range(steps):
        middles = (centroids[1:] + centroids[:-1]) / 2
        cuts = np.searchsorted(values, middles)
        edges = np.concatenate([[0], cuts, [len(values)]])
        counts, totals = np.diff(edges), np.diff(sums[edges])
        moved = np.where(counts > 0, totals / np.maximum(counts, 1), centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


@keras.saving.register_keras_serializable("keras_dlopt")
class Cluster(Transform):
    """Replaces a weight by the nearest of a few shared values, and trains those.

    The values come from k-means on the weight at step `begin`. From then on each weight
    keeps its cluster, and the gradient of a shared value is the sum over its weights:

        w_c[i] = centroids[index[i]],   dL/dc_k = sum over {i: index[i] = k} of dL/dw_i

    Zeros (pruned weights) are a cluster of their own that stays zero and is not
    counted, so that a chain `Prune(...) >> Cluster(16)` keeps its sparsity and uses 16
    values for the rest. Begin after the pruning schedule has ended: weights that become
    zero later are not taken out of their cluster.

    State: one int32 a weight, one trained float32 a cluster.

    Args:
        clusters: number of shared values, at least 2, zero not counted.
        begin: step at which the weights are clustered; 0 does it at once.
        initial: `"linear"` or `"kmeans++"`, the starting points of k-means.
        preserve_zeros: False treats zeros as any other number.
        seed: for k-means++.

    Raises:
        ConfigError: for fewer than 2 clusters, a negative step or an unknown method.

    Example:
        >>> Cluster(16).clusters
        16

    Source: Han et al., "Deep Compression" (arXiv:1510.00149), section 3; k-means++ from
    Arthur and Vassilvitskii (2007).
    """

    def __init__(
        self,
        clusters: int,
        *,
        begin: int = 0,
        initial: Literal["linear", "kmeans++"] = "linear",
        preserve_zeros: bool = True,
        seed: int = 0,
    ):
        if not isinstance(clusters, int) or clusters < 2:
            raise ConfigError(
                f"clusters must be a whole number of at least 2. Received: {clusters!r}"
            )
        if begin < 0:
            raise ConfigError(
                f"begin must be a training step, at least 0. Received: {begin!r}."
            )
        if initial not in ("linear", "kmeans++"):
            raise ConfigError(
                f"initial must be 'linear' or 'kmeans++'. Received: {initial!r}."
            )
        self.clusters, self.begin, self.initial = clusters, begin, initial
        self.preserve_zeros, self.seed = preserve_zeros, seed

    def init(self, target, weight):
        if self.begin == 0:
            state = self._clustered(weight)
        else:
            state = {
                "centroids": np.zeros(self.clusters, "float32"),
                "index": np.zeros(weight.shape, "int32"),
                "on": np.zeros((), "float32"),
            }
        return {k: State(v, trainable=k == "centroids") for k, v in state.items()}

    def apply(self, weight, state, context):
        clustered = lookup(self._table(state), state["index"])
        return ops.where(state["on"] > 0, clustered, weight)

    def _table(self, state):
        """The values that an index points to; 0 is zero where zeros are kept."""
        if not self.preserve_zeros:
            return state["centroids"]
        return ops.concatenate([ops.zeros((1,)), state["centroids"]])

    def next_due(self, step):
        return self.begin if step < self.begin else None

    def update(self, group, step):
        if self.begin == 0:
            return super().update(group, step)
        return [self._clustered(member.weight) for member in group]

    def _clustered(self, weight: np.ndarray) -> dict[str, np.ndarray]:
        flat = weight.ravel().astype("float64")
        used = flat != 0 if self.preserve_zeros else np.ones(flat.shape, bool)
        index = np.zeros(flat.shape, "int32")
        centroids = np.zeros(self.clusters)
        if used.any():
            values = np.sort(flat[used])
            start = initial_centroids(
                values, self.clusters, method=self.initial, seed=self.seed
            )
            centroids = kmeans(values, start, steps=100)
            middles = (centroids[1:] + centroids[:-1]) / 2
            nearest = np.searchsorted(middles, flat[used])
            index[used] = nearest + int(self.preserve_zeros)
        return {
            "centroids": centroids.astype("float32"),
            "index": index.reshape(weight.shape),
            "on": np.ones((), "float32"),
        }

    def finalize(self, target, weight, state):
        if not state["on"]:
            return weight, None
        values = state["centroids"].astype(weight.dtype)
        if self.preserve_zeros:
            values = np.concatenate([np.zeros(1, weight.dtype), values])
        hint = Codebook(indices=state["index"], values=values)
        return values[state["index"]], hint

    def remaining(self, step):
        if step >= self.begin:
            return None
        return f"clustering begins at step {self.begin}"
