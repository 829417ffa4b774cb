"""One call of a model in one runtime, ready to be timed."""

import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError, require
from keras_dlopt.export import litert
from keras_dlopt.export.runtime import interpreter
from keras_dlopt.graph.trace import input_specs
from keras_dlopt.runtime.pure import on_tensorflow

Call = Callable[[], Any]
OF_KERAS = ("graph", "xla", "litert", "openvino")
# What each kind of file can be run with; the first is its own.
OF_FILES = {".tflite": ("litert", "openvino"), ".onnx": ("onnxruntime", "openvino")}


def of_model(model: Any, runtime: str, data: Any, threads: int) -> Call:
    """A call of a Keras model in TensorFlow, or as a temporary `.tflite` file.

    Args:
        model: a built model.
        runtime: one of `OF_KERAS`.
        data: a batch of its inputs.
        threads: of the runtime; TensorFlow's are those that it was started with.

    Raises:
        ConfigError: for TensorFlow's functions on another backend.
        MissingDependencyError: without the package of the runtime.
    """
    if runtime in ("graph", "xla"):
        return _function(model, data, xla=runtime == "xla")
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.tflite"
        size = len(keras.tree.flatten(data)[0])
        litert(model, file, verify=False, batch_size=size, example=data)
        return of_file(file, runtime, threads)


def of_file(file: str | os.PathLike[str], runtime: str, threads: int) -> Call:
    """A call of a file on random inputs of the shapes that it was written with."""
    make = {"litert": _litert, "onnxruntime": _onnx, "openvino": _openvino}[runtime]
    return make(os.fspath(file), threads)


def example_of(model: Any) -> Any:
    """One random example of a model's inputs, standard normal; zeros for integers."""

    def draw(spec: Any) -> np.ndarray:
        return _draw((1, *spec.shape[1:]), keras.backend.standardize_dtype(spec.dtype))

    return keras.tree.map_structure(draw, input_specs(model))


def _draw(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if not np.issubdtype(np.dtype(dtype), np.floating):
        return np.zeros(shape, dtype)
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def _function(model: Any, data: Any, *, xla: bool) -> Call:
    if not on_tensorflow():
        raise ConfigError(
            "The runtimes 'graph' and 'xla' are TensorFlow's. Received: backend "
            f"{keras.backend.backend()!r}. Measure files there: 'model.tflite'."
        )
    import tensorflow as tf

    function = tf.function(lambda x: model(x, training=False), jit_compile=xla)
    given = keras.tree.map_structure(tf.convert_to_tensor, data)
    return lambda: [y.numpy() for y in tf.nest.flatten(function(given))]


def _litert(path: str, threads: int) -> Call:
    runs = interpreter(path, threads=threads)
    inputs = [
        (end["index"], _draw(tuple(end["shape"]), end["dtype"]))
        for end in runs.get_input_details()
    ]
    outputs = [end["index"] for end in runs.get_output_details()]

    def call() -> Any:
        for index, values in inputs:
            runs.set_tensor(index, values)
        runs.invoke()
        return [runs.get_tensor(index) for index in outputs]

    return call


def _onnx(path: str, threads: int) -> Call:
    require("onnxruntime", extra="onnx", purpose="ONNX Runtime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    with open(path, "rb") as file:
        session = onnxruntime.InferenceSession(
            file.read(), options, providers=["CPUExecutionProvider"]
        )
    types = {"tensor(float)": "float32", "tensor(int64)": "int64"}
    types |= {"tensor(int32)": "int32", "tensor(int8)": "int8"}
    inputs = {
        end.name: _draw(
            tuple(d if isinstance(d, int) else 1 for d in end.shape),
            types.get(end.type, "float32"),
        )
        for end in session.get_inputs()
    }
    return lambda: session.run(None, inputs)


def _openvino(path: str, threads: int) -> Call:
    require("openvino", extra="openvino", purpose="OpenVINO")
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(path), "CPU", options)
    inputs = []
    for port in compiled.inputs:
        shape = port.get_partial_shape()
        sizes = (1 if d.is_dynamic else d.get_length() for d in shape)
        inputs.append(_draw(tuple(sizes), port.get_element_type().to_dtype()))
    request = compiled.create_infer_request()
    return lambda: request.infer(inputs)
