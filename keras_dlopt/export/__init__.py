"""Files for other runtimes: written, then read back and checked."""

from keras_dlopt.export.agreement import Agreement, agreement
from keras_dlopt.export.litert import ExportReport, litert
from keras_dlopt.export.onnx import onnx
from keras_dlopt.export.predictor import Predictor, run_litert
from keras_dlopt.export.saved_model import saved_model

__all__ = [
    "Agreement",
    "ExportReport",
    "Predictor",
    "agreement",
    "litert",
    "onnx",
    "run_litert",
    "saved_model",
]
