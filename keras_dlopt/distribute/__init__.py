"""Training and predicting on several devices, processes and machines.

Choosing (`facts`, `choose`) imports neither Keras nor TensorFlow; every other part
loads when one of its names is first used.
"""

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

__all__ = ["RunError", *_HOME]

__getattr__ = moved.names(__name__, homes=_HOME)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
