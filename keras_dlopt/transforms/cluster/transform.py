"""Weight clustering: few shared values, trained together."""

from typing import Literal

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.codecs.hints import Codebook
from keras_dlopt.graph.targets import Target
from keras_dlopt.schedules.parts import check_steps
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.cluster.kmeans import kmeans, nearest
from keras_dlopt.transforms.cluster.starts import Start, start_of
from keras_dlopt.transforms.lookup import lookup
from keras_dlopt.transforms.quantize.layout import channel_axes


def spread(
    values: np.ndarray, clusters: int, *, start: Start, split: bool, seed: int
) -> np.ndarray:
    """Starting points for k-means, ascending.

    Args:
        values: numbers in the order of the weight, at least one.
        clusters: how many points.
        start: where they begin.
        split: whether the negative and the positive numbers get points in proportion to
            their count, each by `start`; else all are taken together.
        seed: for drawn points.
    """
    if not split:
        return start(values, clusters, seed=seed)
    below, above = values[values < 0], values[values > 0]
    share = below.size / max(below.size + above.size, 1)
    count = int(np.rint(np.float32(clusters * share)))
    parts = [(below, count), (above, clusters - count)]
    return np.concatenate([start(v, n, seed=seed) for v, n in parts if v.size and n])


@keras.saving.register_keras_serializable("keras_dlopt")
class Cluster(Transform):
    """Replaces a weight by the nearest of a few shared values, and trains those.

    The values come from k-means on the weight at step `begin`. From then on each weight
    keeps its cluster, and the gradient of a shared value is the sum over its weights:

        w_c[i] = centroids[index[i]],   dL/dc_k = sum over {i: index[i] = k} of dL/dw_i

    With `reassign` the weight itself is trained too, straight through, and takes the
    nearest shared value anew every so many steps.

    Zeros (pruned weights) are a cluster of their own that stays zero and is not
    counted, so that a chain `Prune(...) >> Cluster(16)` keeps its sparsity and uses 16
    values for the rest. It must begin when the pruning schedule has ended, unless
    `reassign` takes the weights that become zero later out of their cluster.

    State: one int32 a weight, one trained float32 a cluster.

    Args:
        clusters: number of shared values, at least 2, zero not counted.
        begin: step at which the weights are clustered; 0 does it at once.
        initial: where k-means starts: `"linear"`, `"density"`, `"kmeans++"`,
            `"random"`, or a `Start` of your own.
        per_channel: whether each output channel has shared values of its own.
        iterations: k-means steps at most; 0 keeps the starting points.
        reassign: steps between two assignments of the weights; None for none.
        gradient: `"sum"`, or `"mean"` over the weights of a cluster.
        preserve_zeros: whether what is zero when it is assigned stays zero, also when
            the weights are assigned again: let regrowth end first. False treats zeros
            as any other number.
        split_signs: with zeros preserved, whether negative and positive weights get
            starting points in proportion to their count.
        seed: for drawn starting points.

    Raises:
        ConfigError: for fewer than 2 clusters, a negative step or an unknown method.

    Example:
        >>> Cluster(16).clusters
        16

    Source: Han et al., "Deep Compression" (arXiv:1510.00149), section 3; the other
    options as in TensorFlow Model Optimization's `cluster_weights`.
    Differs from the paper: trained centroids can pass each other; `reassign` then
    sorts them before it searches.
    """

    def __init__(
        self,
        clusters: int,
        *,
        begin: int = 0,
        initial: str | Start = "linear",
        per_channel: bool = False,
        iterations: int = 100,
        reassign: int | None = None,
        gradient: Literal["sum", "mean"] = "sum",
        preserve_zeros: bool = True,
        split_signs: bool = False,
        seed: int = 0,
    ):
        self.clusters = checks.whole(clusters, name="clusters", least=2)
        self.begin = check_steps(begin, name="begin", least=0)
        start_of(initial)
        self.initial = initial
        self.per_channel = checks.boolean(per_channel, name="per_channel")
        self.iterations = checks.whole(
            iterations, name="iterations", least=0, hint="0 keeps the starting points."
        )
        self.reassign = checks.optional(check_steps, reassign, name="reassign")
        self.gradient = checks.choice(
            gradient, name="gradient", choices=("sum", "mean")
        )
        self.preserve_zeros = checks.boolean(preserve_zeros, name="preserve_zeros")
        self.split_signs = checks.boolean(split_signs, name="split_signs")
        self.seed = checks.seed(seed)

    @property
    def fixed_from(self) -> int | None:  # type: ignore[override]
        """The step at which every weight gets its cluster for good."""
        return self.begin if self.reassign is None else None

    def init(self, target, weight):
        if self.begin == 0:
            state = self._clustered(target, weight)
        else:
            rows = self._rows(target, weight).shape[0]
            shape = (rows, self.clusters) if self.per_channel else (self.clusters,)
            state = {
                "centroids": np.zeros(shape, "float32"),
                "index": np.zeros(weight.shape, "int32"),
                **self._shares(np.zeros(1, "int32"), rows),
                "on": np.zeros((), "float32"),
            }
        return {k: State(v, trainable=k == "centroids") for k, v in state.items()}

    def apply(self, weight, state, context):
        return lookup(
            weight,
            self._table(state),
            state["index"],
            on=state["on"] if self.begin else None,
            through=self.reassign is not None,
        )

    def _table(self, state):
        """The values that an index points to; 0 is zero where zeros are kept."""
        table = ops.reshape(state["centroids"], (-1,))
        if self.gradient == "mean":
            fixed = ops.stop_gradient(table)
            # The value is the table's, since the difference is 0.
            table = fixed + (table - fixed) * state["share"]
        if not self.preserve_zeros:
            return table
        return ops.concatenate([ops.zeros((1,), table.dtype), table])

    def next_due(self, step):
        if self.reassign is None:
            return self.begin if self.begin and step < self.begin else None
        if step < self.begin:
            return self.begin
        return self.begin + ((step - self.begin) // self.reassign + 1) * self.reassign

    def update(self, group, step):
        return [self._updated(member) for member in group]

    def _updated(self, member) -> dict[str, np.ndarray]:
        if not member.state["on"]:
            return self._clustered(member.target, member.weight)
        if self.reassign is None:
            return {}
        rows = self._rows(member.target, member.weight)
        centroids = member.state["centroids"].reshape(len(rows), -1)
        index = self._like(member.target, member.weight, self._index(rows, centroids))
        if self.preserve_zeros:  # the hidden weight of a zero moves with its gradient
            index[member.state["index"] == 0] = 0
        return {"index": index, **self._shares(index, len(rows))}

    def _axes(self, target: Target, rank: int) -> tuple[int, ...]:
        if not self.per_channel:
            return ()
        return channel_axes(target, rank) if rank > 1 else (0,) * rank

    def _rows(self, target: Target, weight: np.ndarray) -> np.ndarray:
        """The weight as (channels, the rest), in float64."""
        axes = self._axes(target, weight.ndim)
        moved = np.moveaxis(weight, axes, range(len(axes)))
        count = int(np.prod(moved.shape[: len(axes)], dtype=int))
        return moved.reshape(count, -1).astype("float64")

    def _like(self, target: Target, weight: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """What `_rows` made, in the shape of the weight again."""
        axes = self._axes(target, weight.ndim)
        moved = np.moveaxis(weight, axes, range(len(axes))).shape
        back = np.moveaxis(rows.reshape(moved), range(len(axes)), axes)
        return np.ascontiguousarray(back)

    def _clustered(self, target: Target, weight: np.ndarray) -> dict[str, np.ndarray]:
        rows = self._rows(target, weight)
        centroids = np.stack([self._centroids(row) for row in rows])
        centroids = centroids.astype("float32")
        index = self._index(rows, centroids)
        return {
            "centroids": centroids if self.per_channel else centroids[0],
            "index": self._like(target, weight, index),
            **self._shares(index, len(rows)),
            "on": np.ones((), "float32"),
        }

    def _centroids(self, row: np.ndarray) -> np.ndarray:
        values = row[row != 0] if self.preserve_zeros else row
        if not values.size:
            return np.zeros(self.clusters)
        split = self.split_signs and self.preserve_zeros
        start = start_of(self.initial)
        found = spread(values, self.clusters, start=start, split=split, seed=self.seed)
        if not self.iterations:
            return found
        return kmeans(np.sort(values), np.sort(found), steps=self.iterations)

    def _index(self, rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        """Positions in the table, 0 for a zero where zeros are kept."""
        zero = int(self.preserve_zeros)
        index = np.zeros(rows.shape, "int32")
        for i, (row, own) in enumerate(zip(rows, centroids, strict=True)):
            index[i] = nearest(row, own) + i * self.clusters + zero
        if self.preserve_zeros:
            index[rows == 0] = 0
        return index

    def _shares(self, index: np.ndarray, rows: int) -> dict[str, np.ndarray]:
        """What a mean takes of each sum of gradients."""
        if self.gradient == "sum":
            return {}
        zero = int(self.preserve_zeros)
        entries = rows * self.clusters + zero
        counts = np.bincount(index.ravel(), minlength=entries)[zero:]
        return {"share": (1 / np.maximum(counts, 1)).astype("float32")}

    def finalize(self, target, weight, state):
        if not state["on"]:
            return weight, None
        values = state["centroids"].ravel().astype(weight.dtype)
        if self.preserve_zeros:
            values = np.concatenate([np.zeros(1, weight.dtype), values])
        hint = Codebook(indices=state["index"], values=values)
        return values[state["index"]], hint

    def remaining(self, step):
        if step >= self.begin or self.begin == 0:
            return None
        return f"clustering begins at step {self.begin}"
