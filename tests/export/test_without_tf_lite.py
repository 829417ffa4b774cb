"""Files are written, and verified, where TensorFlow has no tf.lite, or is not there."""

import os
import subprocess
import sys
from importlib.util import find_spec

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import export
from keras_dlopt.errors import ConfigError, ExportError, MissingDependencyError
from keras_dlopt.export import floating
from keras_dlopt.export.flat import Flat
from keras_dlopt.export.pairs import take_pairs

needed = pytest.mark.skipif(
    not (find_spec("litert_converter") and find_spec("jax")),
    reason="needs the extra stablehlo",
)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 8, 8, 3)).astype("float32")

# Loaded by every process that finds it: the exporting one, and those that it starts.
BLOCK = """
import importlib.abc, importlib.machinery, os, sys

class Gone(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if os.environ["GONE"] == "tensorflow" and name.split(".")[0] == "tensorflow":
            raise ImportError(f"{name} is not there")
        if (name + ".").startswith("tensorflow.lite."):
            raise ImportError(f"{name} has left TensorFlow")
        if name.startswith("tensorflow._api.") and name.endswith(".lite"):
            return importlib.machinery.ModuleSpec(name, self)  # an empty module

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Gone())
"""
EXPORT = """
import sys
import keras, numpy as np, pytest
from keras import layers
import keras_dlopt as dlopt

gone = "tensorflow" if keras.backend.backend() == "jax" else "tensorflow.lite"
with pytest.raises(ImportError):
    __import__(gone)
inputs = keras.Input((8, 8, 3), name="image")
x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="a")(inputs)
x = layers.ReLU(name="a_relu")(layers.BatchNormalization(name="a_bn")(x))
y = layers.DepthwiseConv2D(3, padding="same", name="deep")(x)
x = layers.AveragePooling2D(2, name="pool")(layers.Add(name="add")([x, y]))
outputs = {"b": layers.Dense(3, name="b")(layers.Flatten(name="f")(x)), "a": x}
model = keras.Model(inputs, outputs)
bn = model.get_layer("a_bn")
rng = np.random.default_rng(0)
bn.gamma.assign([1, -2, 0.5, 1, -1, 3])
bn.moving_mean.assign(rng.normal(size=6))
x = rng.normal(size=(16, 8, 8, 3)).astype("float32")
small = dlopt.post_training.quantize(model, x)
report = dlopt.export.litert(small, sys.argv[1], data=x, io="int8", full_integer=True)
assert report.verified
assert report.codes == 6 * 27 + 6 * 9 + 3 * 96
assert report.agreement.largest_lsb <= 2, report
small.save(sys.argv[2])
report = dlopt.export.litert(model, sys.argv[3], data=x)
assert report.verified and report.agreement.largest_lsb <= 2, report
"""


@needed
@pytest.mark.parametrize(
    ("backend", "gone"), [("tensorflow", "tensorflow.lite"), ("jax", "tensorflow")]
)
def test_export_and_verify_in_a_process_without_it(tmp_path, backend, gone):
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    (tmp_path / "script.py").write_text(EXPORT)
    files = [tmp_path / name for name in ("int8.tflite", "small.keras", "f.tflite")]
    path = os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])
    env = os.environ | {"KERAS_BACKEND": backend, "GONE": gone, "PYTHONPATH": path}
    found = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), *map(str, files)],
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    # The same model by TensorFlow's converter, in this process, which has it.
    small = keras.saving.load_model(files[1])
    export.litert(small, tmp_path / "known.tflite", io="int8", converter="tf.lite")
    predict, known = (
        export.Predictor(files[0]),
        export.Predictor(tmp_path / "known.tflite"),
    )
    assert [end.name for end in predict.outputs] == ["a", "b"]
    for a, b in zip(predict(X), known(X), strict=True):
        # On one grid, whose step each converter rounded in its own way.
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def net():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(4, 3, name="c"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="logits"),
        ]
    )


@needed
def test_either_converter_on_request(tmp_path):
    model = net()
    for name, batch in (("tf.lite", 1), ("auto", 1), ("stablehlo", None)):
        report = export.litert(
            model, tmp_path / "m.tflite", data=X, converter=name, batch_size=batch
        )
        assert report.agreement.largest_lsb == 0
    assert export.Predictor(report.path).inputs[0].shape == (None, 8, 8, 3)
    assert export.Predictor(report.path).inputs[0].name == "image"


def refused(error, text, tmp_path, model=None, **options):
    with pytest.raises(error, match=text):
        export.litert(model or net(), tmp_path / "m.tflite", **options)
    assert os.listdir(tmp_path) == []


def test_converters_that_are_not_there(tmp_path, monkeypatch):
    import importlib.util

    refused(
        ConfigError, "converter must be one of .*'onnx'", tmp_path, converter="onnx"
    )
    with monkeypatch.context() as patched:
        patched.setattr(floating, "_has_tf_lite", lambda: False)
        text = "converter='tf.lite' needs .* Use converter='stablehlo'"
        refused(ConfigError, text, tmp_path, converter="tf.lite")
        real = importlib.util.find_spec

        def find(name):
            return None if name == "litert_converter" else real(name)

        patched.setattr(importlib.util, "find_spec", find)
        text = r"without tf.lite needs the package 'litert_converter'.*\[stablehlo\]"
        refused(MissingDependencyError, text, tmp_path)


@needed
def test_what_the_other_processes_refuse(tmp_path):
    small = dlopt.post_training.quantize(net(), X)
    text = "no quantizers for a batch of any size. Give batch_size a number, or use"
    refused(ConfigError, text, tmp_path, small, converter="stablehlo", batch_size=None)

    class Own(layers.Layer):
        def call(self, x):
            return x + 1

    model = keras.Sequential([keras.Input((3,)), Own()])
    text = "(?s)Keras on JAX refused 'sequential.*failed with exit code 1.*Own"
    refused(ExportError, text, tmp_path, model, converter="stablehlo")


def test_operations_that_a_converter_moved_into_int8_make_floats_again(tmp_path):
    """As `litert-converter` writes a pool between two pairs."""
    import tensorflow as tf

    def made(x):
        x = tf.quantization.fake_quant_with_min_max_vars(x, -1.0, 1.0)
        x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        return tf.quantization.fake_quant_with_min_max_vars(x, -1.0, 1.0)

    spec = [tf.TensorSpec((1, 4, 4, 2))]
    function = tf.function(made, input_signature=spec).get_concrete_function()
    with export.quiet.silence():
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
        (tmp_path / "m.tflite").write_bytes(converter.convert())
    file = Flat(tmp_path / "m.tflite")
    (pool,) = (op for op in file.ops if op.name == "MAX_POOL_2D")
    quantizes = [op for op in file.ops if op.name == "QUANTIZE"]
    dequantizes = [op for op in file.ops if op.name == "DEQUANTIZE"]
    # The pool in int8: the pair before it loses its end, the one after its beginning.
    pool.inputs, pool.outputs = quantizes[0].outputs, quantizes[1].outputs
    gone = {id(dequantizes[0]), id(quantizes[1])}
    file.ops = [op for op in file.ops if id(op) not in gone]
    views = take_pairs(file)
    assert [op.name for op in file.ops] == ["MAX_POOL_2D"]
    assert file.is_float(pool.inputs[0])
    assert file.is_float(pool.outputs[0])
    assert len(views) == 2
    assert views[file.outputs[0]].source == pool.outputs[0]
