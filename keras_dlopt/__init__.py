"""Keras 3 models that train better, get smaller and run faster.

Everything Keras must be able to find when it loads a model is imported with it; the
parts that pull in plotting, converters or search load when they are first used, and in
the command `keras-dlopt` everything does, so that its help is there at once.
"""

import os
import re
import sys
from typing import TYPE_CHECKING

from keras_dlopt import moved

if TYPE_CHECKING:
    from keras_dlopt.registered import *

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
    "online",
    "post_training",
    "privacy",
    "report",
    "storage",
    "surgery",
    "tpu",
    "trials",
)
_NAMES = {
    "OnlineLearner": "online",
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
    "recipe": "auto",
    "save_compressed": "storage",
    "sensitivity": "auto",
    "shared_layers": "surgery",
    "shared_recipe": "surgery",
    "compress": "auto",
    "deep_compression": "auto",
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
    "MinimalRandomCode",
    "OnlineLearner",
    "Prune",
    "RateAware",
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
    "compress",
    "data",
    "deep_compression",
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
    "online",
    "optimizers",
    "post_training",
    "privacy",
    "profile_fit",
    "prune",
    "prune_channels",
    "rank",
    "recipe",
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


def register() -> None:
    """Makes this package's classes known to Keras: done already, but in its command."""
    from keras_dlopt import registered

    globals().update({name: getattr(registered, name) for name in registered.__all__})


def _is_command() -> bool:
    """Whether this process is the command `keras-dlopt`, or `python -m keras_dlopt`."""
    given = getattr(sys, "argv", None) or [""]
    if given[0] == "-m":
        # So while Python looks for the module: what follows `-m` is just before the
        # arguments, in an argument of its own or (`-mkeras_dlopt`) at the end of one.
        asked = sys.orig_argv[-len(given)]
        return re.fullmatch(r"(-\w*m)?keras_dlopt", asked) is not None
    name = os.path.basename(given[0])
    # What `multiprocessing` spawns from the command has its `sys.argv` and not its job.
    spawned = "--multiprocessing-fork" in sys.orig_argv
    return name in ("keras-dlopt", "keras-dlopt.exe") and not spawned


if not _is_command():
    register()
