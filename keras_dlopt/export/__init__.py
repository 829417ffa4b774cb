"""Files for other runtimes: written, then read back and checked."""

from keras_dlopt.export.litert import ExportReport, litert
from keras_dlopt.export.runtime import run_litert
from keras_dlopt.export.verify import Agreement, agreement

__all__ = ["Agreement", "ExportReport", "agreement", "litert", "run_litert"]
