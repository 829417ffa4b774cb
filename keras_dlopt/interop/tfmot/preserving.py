"""TFMOT's schemes that keep zeros and shared values while 8 bits are trained."""

import keras
import numpy as np
from keras import ops

from keras_dlopt.graph.targets import Target, weight_targets
from keras_dlopt.interop.tfmot.pruning import ConstantSparsity
from keras_dlopt.select import Selector, at
from keras_dlopt.transforms import Cluster, Prune, Recipe, Transform
from keras_dlopt.transforms.cluster import Start
from keras_dlopt.transforms.prune.pattern import Unstructured

_KEEP = Unstructured(ties="keep")
MOST = 1024  # values of a weight that counts as clustered
PADDING = 1.0  # TFMOT's value for channels that have one value less than others


@keras.saving.register_keras_serializable("keras_dlopt")
class KeptValues(Start):
    """The values that a clustered weight has already, and 1 where it has fewer."""

    def __call__(self, values, clusters, *, seed):
        found = np.unique(values)
        return np.pad(found, (0, clusters - found.size), constant_values=PADDING)


@keras.saving.register_keras_serializable("keras_dlopt")
class KeptClusters(Cluster):
    """Trains the shared values that a weight has; it takes the nearest at each step.

    Args:
        clusters: number of values, zero counted.
        per_channel: whether each output channel has values of its own.
        zeros: whether a value that is zero stays zero. A weight may take it, and leave
            it again.
    """

    def __init__(
        self, clusters: int, *, per_channel: bool = False, zeros: bool = False
    ):
        super().__init__(
            clusters,
            initial=KeptValues(),
            per_channel=per_channel,
            iterations=0,
            reassign=1,
            preserve_zeros=False,
        )
        self.zeros = bool(zeros)

    def _table(self, state):
        table = super()._table(state)
        if not self.zeros:
            return table
        return table * ops.stop_gradient(ops.cast(table != 0, table.dtype))


def kept_clusters(target: Target, value: np.ndarray, *, zeros: bool) -> Cluster | None:
    """The transform that keeps the shared values of a weight, as TFMOT finds them.

    A 2-D convolution whose channels have as many values each, or one less, is taken as
    clustered per channel; its channels no longer share values then.

    Returns:
        None for a weight of one value, of more than 1024, or without shared values.
    """

    def found(part: np.ndarray) -> int:
        return np.unique(part).size

    per_channel, count = False, found(value)
    if isinstance(target.layer, keras.layers.Conv2D):
        counts = [found(value[..., i]) for i in range(value.shape[-1])]
        if max(counts) - min(counts) <= 1:
            per_channel, count = True, max(counts)
    size = value.size // (value.shape[-1] if per_channel else 1)
    if not 2 <= count <= MOST or count == size:
        return None
    return KeptClusters(count, per_channel=per_channel, zeros=zeros)


class Default8BitPrunePreserveQuantizeScheme:
    """`tfmot.quantization.keras.collab_opts.Default8BitPrunePreserveQuantizeScheme`.

    The zeros that a pruned and stripped model has stay zeros while the 8-bit scheme
    trains (PQAT).
    """

    def preserved(self, recipe: Recipe, model: keras.Model) -> Recipe:
        """The recipe, with the zeros of the model's weights kept."""
        entries: list[tuple[Selector, Transform]] = []
        left = weight_targets(model)
        for selector, chosen in recipe.entries:
            if chosen.kind != "weight":
                entries.append((selector, chosen))
                continue
            mine = [t for t in left if selector(t)]
            left = [t for t in left if not selector(t)]
            entries += [(at(t.path), self.kept(t, chosen)) for t in mine]
        return Recipe(entries)

    def kept(self, target: Target, chosen: Transform) -> Transform:
        """The transform behind one that keeps the zeros that the weight has now."""
        zeros = keras.ops.convert_to_numpy(target.variable) == 0
        share = float(zeros.mean()) if zeros.size else 0.0
        if not 0 < share < 1:
            return chosen
        return Prune(ConstantSparsity(share, 1, 1), pattern=_KEEP) >> chosen


class Default8BitClusterPreserveQuantizeScheme(Default8BitPrunePreserveQuantizeScheme):
    """`tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme`.

    Weights that share values go on sharing them, at most as many, while the 8-bit
    scheme trains (CQAT). A convolution's are then rounded on the grid of each output
    channel, and if its channels have as many values each, or one less, each channel
    trains its own.

    Args:
        preserve_sparsity: whether zeros stay zeros too (PCQAT).
    """

    def __init__(self, preserve_sparsity: bool = True):
        self.preserve_sparsity = bool(preserve_sparsity)

    def kept(self, target: Target, chosen: Transform) -> Transform:
        """The transform behind one that keeps the shared values."""
        value = keras.ops.convert_to_numpy(target.variable)
        zeros = self.preserve_sparsity and bool((value == 0).any())
        shared = kept_clusters(target, value, zeros=zeros)
        made = chosen if shared is None else shared >> chosen
        return super().kept(target, made) if zeros else made


def strip_clustering_cqat(to_strip: keras.Model) -> keras.Model:
    """`tfmot.experimental.combine.strip_clustering_cqat`: not needed.

    What the export reads is in the model as it is. `strip_clustering` makes it plain.
    """
    return to_strip
