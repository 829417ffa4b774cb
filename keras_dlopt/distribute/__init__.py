"""Training and predicting on several devices, processes and machines.

Choosing (`facts`, `choose`) imports neither Keras nor TensorFlow; every other part
loads when one of its names is first used.
"""

import importlib
from typing import Any

from keras_dlopt import moved
from keras_dlopt.errors import RunError

_HOME = {
    "BFloat16": "compression",
    "choose": "plans",
    "data_parallel": "parallel",
    "Facts": "facts",
    "fit": "resume",
    "measure_speeds": "uneven",
    "Plan": "plans",
    "plan": "build",
    "PowerSGD": "compression",
    "predict": "inference",
    "predict_litert": "interpreters",
    "prepare": "pipeline",
    "probe": "facts",
    "run": "workers",
    "search_batch_size": "inference",
    "strategy": "build",
    "synchronize": "normalization",
    "TopK": "compression",
    "uneven_batches": "uneven",
    "uneven_shares": "uneven",
    "unsynchronized": "normalization",
}

_moved = moved.names(__name__)

__all__ = ["RunError", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        module = importlib.import_module(f"{__name__}.{_HOME[name]}")
        return getattr(module, name)
    return _moved(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
