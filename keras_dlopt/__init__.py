"""Keras 3 models that train better, get smaller and run faster.

Everything Keras must be able to find when it loads a model is imported here; the parts
that pull in plotting, converters or search load when they are first used.
"""

from keras_dlopt import callbacks, layers, moved, optimizers, schedules
from keras_dlopt.select import at, everything, inside, matching, named, rank
from keras_dlopt.transforms import (
    L0,
    Chain,
    Cluster,
    FakeQuant,
    FakeQuantActivation,
    HashedWeights,
    LowRank,
    Prune,
    Recipe,
    Share,
    SoftWeightSharing,
    Statistics,
    Transform,
    TransformedLayer,
    TransformedModel,
    UpdateTransforms,
    VariationalDropout,
    low_rank_recipe,
    prune,
    transform,
)
from keras_dlopt.transforms.hashed_kernel import HashedKernel

__version__ = "0.1.0"

_MODULES = (
    "adapt",
    "auto",
    "data",
    "distill",
    "distribute",
    "export",
    "int8",
    "interop",
    "measure",
    "model_parallel",
    "models",
    "post_training",
    "privacy",
    "report",
    "storage",
    "surgery",
    "tpu",
    "trials",
)
_NAMES = {
    "factorize": "surgery",
    "finalize": "surgery",
    "hashed_layers": "surgery",
    "hashed_recipe": "surgery",
    "doctor": "report",
    "int8_recipe": "int8",
    "profile_fit": "measure",
    "prune_channels": "surgery",
    "remove_dead": "surgery",
    "load_compressed": "storage",
    "save_compressed": "storage",
    "sensitivity": "auto",
    "shared_layers": "surgery",
    "shared_recipe": "surgery",
    "split_activations": "int8",
}

__all__ = [
    "L0",
    "Chain",
    "Cluster",
    "FakeQuant",
    "FakeQuantActivation",
    "HashedKernel",
    "HashedWeights",
    "LowRank",
    "Prune",
    "Recipe",
    "Share",
    "SoftWeightSharing",
    "Statistics",
    "Transform",
    "TransformedLayer",
    "TransformedModel",
    "UpdateTransforms",
    "VariationalDropout",
    "adapt",
    "at",
    "auto",
    "callbacks",
    "data",
    "distill",
    "distribute",
    "doctor",
    "everything",
    "export",
    "factorize",
    "finalize",
    "hashed_layers",
    "hashed_recipe",
    "inside",
    "int8",
    "int8_recipe",
    "interop",
    "layers",
    "load_compressed",
    "low_rank_recipe",
    "matching",
    "measure",
    "model_parallel",
    "models",
    "named",
    "optimizers",
    "post_training",
    "privacy",
    "profile_fit",
    "prune",
    "prune_channels",
    "rank",
    "remove_dead",
    "report",
    "save_compressed",
    "schedules",
    "sensitivity",
    "shared_layers",
    "shared_recipe",
    "split_activations",
    "storage",
    "surgery",
    "tpu",
    "transform",
    "trials",
]


__getattr__ = moved.names(__name__, homes=_NAMES, modules=_MODULES)
moved.install()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
