"""Many tasks over many processes or machines, with a store that survives kills."""

from keras_dlopt.trials.store import Outcome
from keras_dlopt.trials.tasks import run_tasks

__all__ = ["Outcome", "run_tasks"]
