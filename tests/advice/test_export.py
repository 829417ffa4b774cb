"""Files that were exported: what batches and files that do not fit are told to do."""

from importlib.util import find_spec

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import export
from keras_dlopt.export import twin, writer
from keras_dlopt.export.quiet import silence

advice = pytest.mark.advice
X = np.random.default_rng(0).normal(size=(8, 2)).astype("float32")


def written(path, model, **options):
    export.litert(model, path, verify=False, **options)
    return export.Predictor(path)


@advice("export/batches.py", "Pass a dict with these names, or a list in this order.")
def test_inputs_of_other_names(told, tmp_path):
    a, b = keras.Input((2,), name="b"), keras.Input((2,), name="a")
    model = keras.Model([a, b], layers.Subtract()([a, b]))
    predict = written(tmp_path / "m.tflite", model)
    with told():
        predict({"left": X, "right": 2 * X})
    names = [end.name for end in predict.inputs]
    for x in ([X, 2 * X], dict(zip(names, [X, 2 * X], strict=True))):
        np.testing.assert_allclose(predict(x), -X, atol=1e-6)


@advice("export/batches.py", "Convert the values: x.astype(")
@advice("export/batches.py", "Give smaller ones.")
def test_whole_numbers(told, tmp_path):
    ids = keras.Input((2,), dtype="int32", name="ids")
    model = keras.Model(ids, layers.Embedding(5, 3)(ids))
    predict, x = written(tmp_path / "m.tflite", model), np.array([[1.0, 4.0]])
    with told():
        predict(x)
    with told():
        predict(np.array([[1, 2**40]]))
    np.testing.assert_array_equal(predict(x.astype("int32")), model(x))


@advice("export/batches.py", "Give an array of floats.")
@advice("export/batches.py", "Replace them: np.nan_to_num(x).")
def test_values_that_a_grid_does_not_hold(told, tmp_path):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    small = dlopt.post_training.quantize(model, X)
    predict = written(tmp_path / "m.tflite", small, io="int8")
    x = X.copy()
    x[0] = np.nan
    for wrong, right in ((X.astype(str), X), (x, np.nan_to_num(x))):
        with told():
            predict(wrong)
        assert np.isfinite(predict(right)).all()


def of_tensorflow(path, shapes, made):
    """A file that no Keras model is behind."""
    import tensorflow as tf

    specs = [tf.TensorSpec(shape) for shape in shapes]
    function = tf.function(made, input_signature=specs).get_concrete_function()
    with silence():
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
        path.write_bytes(converter.convert())


@advice("export/predictor.py", "Use ai_edge_litert.interpreter.Interpreter on it.")
@pytest.mark.parametrize(
    ("shapes", "made"),
    [
        ([()], lambda x: x * 2),
        ([(1, 2), (3, 2)], lambda x, y: x + y),
        ([(2, 3)], lambda x: keras.ops.sum(x, axis=0)),
    ],
)
def test_files_that_are_no_function_of_a_batch(told, tmp_path, shapes, made):
    from ai_edge_litert.interpreter import Interpreter

    path = tmp_path / "tf.tflite"
    of_tensorflow(path, shapes, made)
    ones = [np.ones(shape, "float32") for shape in shapes]
    with told():
        export.Predictor(path)(ones)
    it = Interpreter(model_path=str(path))
    it.allocate_tensors()
    for end, one in zip(it.get_input_details(), ones, strict=True):
        it.set_tensor(end["index"], one)
    it.invoke()
    (out,) = it.get_output_details()
    np.testing.assert_array_equal(it.get_tensor(out["index"]), made(*ones))


@advice("export/predictor.py", "Use onnxruntime.InferenceSession on it.")
@pytest.mark.skipif(
    not (find_spec("onnx") and find_spec("onnxruntime")),
    reason="needs the extra onnx",
)
def test_onnx_files_that_are_no_function_of_a_batch(told, tmp_path):
    import onnx
    import onnxruntime as runtime

    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [])
        for name in "xy"
    ]
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [onnx.helper.make_opsetid("", 15)]
    path = tmp_path / "neg.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    with told():
        export.Predictor(path)
    session = runtime.InferenceSession(path)
    assert session.run(None, {"x": np.array(3, "float32")})[0] == -3


@advice("export/onnx.py", "Write them with other layers.")
@pytest.mark.skipif(
    not (find_spec("tf2onnx") and find_spec("onnxruntime")),
    reason="needs the extra onnx",
)
def test_layers_without_an_onnx_form(told, tmp_path):
    class Inverse(layers.Layer):
        def call(self, x):
            return keras.ops.erfinv(x)

    x, path = np.clip(X, -0.9, 0.9), tmp_path / "m.onnx"
    with told():
        export.onnx(keras.Sequential([keras.Input((2,)), Inverse()]), path)
    model = keras.Sequential([keras.Input((2,)), layers.Activation("softsign")])
    assert export.onnx(model, path, data=x).agreement.largest_lsb == 0


@advice("export/saved_model.py", "Choose another name.")
def test_places_that_are_taken(told, tmp_path):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    (tmp_path / "m").write_text("mine")
    with told():
        export.saved_model(model, tmp_path / "m")
    assert export.saved_model(model, tmp_path / "other").verified


@advice("export/layerwise.py", "Leave their quantizers out of the recipe")
def test_an_operation_that_rounds_otherwise(told, tmp_path, monkeypatch):
    keras.utils.set_random_seed(0)
    parts = [layers.Dense(4, name="odd"), layers.ReLU(name="r")]
    parts.append(layers.Dense(2, name="end"))
    model = keras.Sequential([keras.Input((2,)), *parts])
    put = writer._Writer._put_kernel

    def rounded_up(self, op, taken, made):
        """As a runtime would whose kernel of this one operator is broken."""
        put(self, op, taken, made)
        if any("odd" in name for name in self._names(op)):
            unit = self.file.tensors[op.inputs[2]].quantization.scale
            bias = self.file.data(op.inputs[2]) + np.int32(9 * made.scale / unit)
            op.inputs[2] = self.file.add(op.inputs[2], "int32", values=bias, scale=unit)

    monkeypatch.setattr(writer._Writer, "_put_kernel", rounded_up)
    model.get_layer("odd").bias.assign([1, 2, 3, 4])
    path, kernels = tmp_path / "m.tflite", dlopt.named("kernel")

    def quantized(*paths):
        entries = [
            (dlopt.at(*paths), dlopt.FakeQuantActivation()),
            (kernels, dlopt.FakeQuant(bits=8)),
        ]
        recipe = dlopt.Recipe(entries)
        return dlopt.post_training.quantize(model, X, recipe=recipe)

    with told():
        export.litert(quantized("odd/input", "r/output", "end/output"), path, data=X)
    report = export.litert(quantized("r/output", "end/output"), path, data=X)
    assert any("from 'odd'" in island for island in report.islands)


@advice("export/noise.py", "Pass verify=False to write the file unchecked")
def test_a_file_of_another_function(told, tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2)])

    def negative(self, inputs):
        return self.ends.named(-self.model(self.ends.structured(inputs)))

    monkeypatch.setattr(twin.Twin, "call", negative)
    path = tmp_path / "m.tflite"
    with told():
        export.litert(model, path, data=X)
    assert not path.exists()
    export.litert(model, path, verify=False)
    np.testing.assert_allclose(export.run_litert(path, X), -model(X), atol=1e-6)


@advice("export/floating.py", "Use converter='stablehlo'.")
@advice("export/stablehlo.py", "Give batch_size a number, or use converter='tf.lite'.")
@pytest.mark.skipif(
    not (find_spec("litert_converter") and find_spec("jax")),
    reason="needs the extra stablehlo",
)
def test_either_converter(told, tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    small, path = dlopt.post_training.quantize(model, X), tmp_path / "m.tflite"
    with monkeypatch.context() as patched, told():
        patched.setattr(export.floating, "_has_tf_lite", lambda: False)
        export.litert(small, path, converter="tf.lite")
    with told():
        export.litert(small, path, converter="stablehlo", batch_size=None)
    for options in ({"converter": "stablehlo"}, {"batch_size": None}):
        assert export.litert(small, path, data=X, **options).agreement.largest_lsb <= 1
