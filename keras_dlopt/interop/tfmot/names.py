"""TFMOT's dotted names, so that a script for it needs another import line only."""

import types
from typing import Any

from keras_dlopt.interop.tfmot import clustering as _clustering
from keras_dlopt.interop.tfmot import preserving, pruning, summaries
from keras_dlopt.interop.tfmot import quantization as _quantization


class _Room:
    """Names of TFMOT that hold others; the rest are those of the module below."""

    def __init__(self, below: Any = None, **names: Any):
        self._below = below
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self._below is None:
            raise AttributeError(name)
        return getattr(self._below, name)


def _of(module: Any, *names: str, **more: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(**{n: getattr(module, n) for n in names}, **more)


sparsity = _Room(
    keras=_of(
        pruning,
        "ConstantSparsity",
        "PolynomialDecay",
        "PrunableLayer",
        "PruningPolicy",
        "UpdatePruningStep",
        "prune_low_magnitude",
        "prune_scope",
        "strip_pruning",
        PruningSummaries=summaries.PruningSummaries,
    )
)
_CLUSTERING = ("CentroidInitialization", "cluster_scope", "strip_clustering")
clustering = _Room(
    _clustering,
    keras=_of(
        _clustering,
        *_CLUSTERING,
        "cluster_weights",
        experimental=_of(_clustering, "cluster_weights"),
    ),
)
quantization = _Room(
    _quantization,
    keras=_of(
        _quantization,
        "quantize_annotate_layer",
        "quantize_annotate_model",
        "quantize_apply",
        "quantize_model",
        "quantize_scope",
        collab_opts=_of(preserving, "Default8BitPrunePreserveQuantizeScheme"),
    ),
)
experimental = _Room(
    combine=_of(
        preserving,
        "Default8BitClusterPreserveQuantizeScheme",
        "Default8BitPrunePreserveQuantizeScheme",
        "strip_clustering_cqat",
    )
)
