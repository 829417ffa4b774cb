"""TensorFlow Model Optimization's names, on Keras 3 and for every kind of model.

The same arguments mean the same; what comes back are this package's own objects: a
`TransformedModel` for a model, a `TransformedLayer` for a layer. TFMOT itself is not
needed, not even to read its files. `docs/migrating_from_tfmot.md` goes through it.

Example:
    >>> from keras_dlopt.interop import tfmot
    >>> net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> pruned = tfmot.prune_low_magnitude(net, tfmot.ConstantSparsity(0.5, 0))
    >>> type(pruned).__name__
    'TransformedModel'
"""

from keras_dlopt.interop.tfmot.clustering import (
    CentroidInitialization,
    GridDensity,
    TensorFlowKMeansPlusPlus,
    cluster_scope,
    cluster_weights,
    strip_clustering,
)
from keras_dlopt.interop.tfmot.conversion import load_model
from keras_dlopt.interop.tfmot.preserving import (
    Default8BitClusterPreserveQuantizeScheme,
    Default8BitPrunePreserveQuantizeScheme,
    strip_clustering_cqat,
)
from keras_dlopt.interop.tfmot.pruning import (
    ConstantSparsity,
    PolynomialDecay,
    PrunableLayer,
    PruningPolicy,
    UpdatePruningStep,
    prune_low_magnitude,
    prune_scope,
    strip_pruning,
)
from keras_dlopt.interop.tfmot.quantization import (
    QuantizeAnnotate,
    quantize_annotate_layer,
    quantize_annotate_model,
    quantize_apply,
    quantize_model,
    quantize_scope,
)
from keras_dlopt.interop.tfmot.summaries import PruningSummaries

# isort: split
# Last: these take the names of the modules above.
from keras_dlopt.interop.tfmot.names import (
    clustering,
    experimental,
    quantization,
    sparsity,
)

__all__ = [
    "CentroidInitialization",
    "ConstantSparsity",
    "Default8BitClusterPreserveQuantizeScheme",
    "Default8BitPrunePreserveQuantizeScheme",
    "GridDensity",
    "PolynomialDecay",
    "PrunableLayer",
    "PruningPolicy",
    "PruningSummaries",
    "QuantizeAnnotate",
    "TensorFlowKMeansPlusPlus",
    "UpdatePruningStep",
    "cluster_scope",
    "cluster_weights",
    "clustering",
    "experimental",
    "load_model",
    "prune_low_magnitude",
    "prune_scope",
    "quantization",
    "quantize_annotate_layer",
    "quantize_annotate_model",
    "quantize_apply",
    "quantize_model",
    "quantize_scope",
    "sparsity",
    "strip_clustering",
    "strip_clustering_cqat",
    "strip_pruning",
]
