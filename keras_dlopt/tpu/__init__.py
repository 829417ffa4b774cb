"""Whether a train step compiles for TPUs, fits, and how fast it can be; without a TPU.

`check` runs the real TPU compiler. `save_step` writes a step that JAX alone can run on
a TPU machine.
"""

from keras_dlopt.tpu.checking import check
from keras_dlopt.tpu.chips import (
    CHIPS,
    KNOWN_TOPOLOGIES,
    Chip,
    Topology,
    topology,
)
from keras_dlopt.tpu.report import Failure, Report, Step
from keras_dlopt.tpu.saving import SavedStep, load_step, save_step

__all__ = [
    "CHIPS",
    "KNOWN_TOPOLOGIES",
    "Chip",
    "Failure",
    "Report",
    "SavedStep",
    "Step",
    "Topology",
    "check",
    "load_step",
    "save_step",
    "topology",
]
