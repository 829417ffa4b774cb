"""ONNX files hold the trained codes and grids, and compute in ONNX Runtime."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import export
from keras_dlopt.errors import (
    ConfigError,
    ExportError,
    FormatError,
    MissingDependencyError,
)
from support.machine import needs_exact_products

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("tf2onnx", reason="needs the extra onnx")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 8, 8, 3)).astype("float32")


def residual():
    """Convolutions before normalizations of both signs; channel 2 of `a` is dead."""

    def conv(x, layer, relu=True):
        x = layer(x)
        x = layers.BatchNormalization(name=f"{layer.name}_bn")(x)
        return layers.ReLU(name=f"{layer.name}_relu")(x) if relu else x

    inputs = keras.Input((8, 8, 3), name="image")
    x = conv(inputs, layers.Conv2D(8, 3, padding="same", use_bias=False, name="a"))
    y = conv(x, layers.DepthwiseConv2D(3, padding="same", name="deep"))
    y = conv(y, layers.Conv2D(8, 1, name="point"), relu=False)
    x = layers.ReLU(name="relu")(layers.Add(name="add")([x, y]))
    x = layers.MaxPooling2D(name="max")(x)
    x = layers.Conv2DTranspose(4, 2, strides=2, name="up")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(10, name="logits")(x), name="residual")
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            size = layer.gamma.shape
            layer.gamma.assign(RNG.uniform(0.5, 2, size) * RNG.choice([-1, 1], size))
            layer.beta.assign(RNG.normal(size=size))
            layer.moving_mean.assign(RNG.normal(size=size) / 4)
            layer.moving_variance.assign(RNG.uniform(0.5, 2, size))
    for name in ("deep", "point", "up", "logits"):
        bias = model.get_layer(name).bias
        bias.assign(RNG.normal(size=bias.shape))
    kernel = model.get_layer("a").kernel.numpy()
    kernel[..., 2] *= 1e-32  # as weight decay leaves it
    model.get_layer("a").kernel.assign(kernel)
    return model


@pytest.fixture(scope="module")
def small():
    return dlopt.post_training.quantize(residual(), X)


@pytest.fixture(scope="module")
def file(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "residual.onnx"
    return path, export.onnx(small, path, data=X)


class Reading:
    """An ONNX file by the package `onnx` alone."""

    def __init__(self, path):
        self.proto = onnx.load(path)
        onnx.checker.check_model(self.proto, full_check=True)
        graph = self.proto.graph
        self.nodes = list(graph.node)
        self.constants = {
            one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer
        }

    def pairs(self):
        """Scale and zero point of each activation quantizer."""
        found = set()
        for node in self.nodes:
            if node.op_type == "QuantizeLinear":
                scale, zero = (self.constants[name] for name in node.input[1:])
                assert zero.dtype == np.uint8
                found.add((scale.item(), int(zero) - 128))
        return found

    def weights(self, dtype):
        """Codes and scales of the constants of a type, the channels first."""
        for node in self.nodes:
            if node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
                codes, scales = (self.constants[name] for name in node.input[:2])
                if codes.dtype == dtype:
                    (axis,) = (a.i for a in node.attribute if a.name == "axis")
                    assert not any(self.constants[n].any() for n in node.input[2:])
                    yield np.moveaxis(codes, axis, 0), scales


def by_channel(layer):
    """The kernel as ONNX has it: (outputs, inputs, height, width)."""
    kernel = layer.kernel.numpy()
    if isinstance(layer, layers.DepthwiseConv2D):
        return kernel[..., 0].transpose(2, 0, 1)[:, None]
    if isinstance(layer, layers.Conv2DTranspose):
        return kernel.transpose(2, 3, 0, 1)
    return kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T


@pytest.mark.parametrize("name", ["a", "deep", "point", "up", "logits"])
def test_codes_and_scales_are_the_trained_ones(small, file, name):
    """The trained kernel over its largest value, with the normalization behind it."""
    plain = dlopt.finalize(small)
    kernel = by_channel(plain.get_layer(name)).astype("float64")
    factor = np.ones(len(kernel))
    if any(layer.name == f"{name}_bn" for layer in plain.layers):
        bn = plain.get_layer(f"{name}_bn")
        factor = bn.gamma.numpy() / np.sqrt(bn.moving_variance.numpy() + bn.epsilon)
    top = np.abs(kernel).reshape(len(kernel), -1).max(axis=1)
    scale = top / 127
    alive = np.ones(len(kernel), bool)
    if name == "a":
        alive[2] = False
    one = (-1,) + (1,) * (kernel.ndim - 1)
    codes = np.rint(kernel / scale.reshape(one)) * np.sign(factor).reshape(one)
    found = [
        (c, s) for c, s in Reading(file[0]).weights(np.int8) if c.shape == codes.shape
    ]
    assert any(
        np.array_equal(c[alive], codes[alive])
        and np.allclose(s[alive], (scale * np.abs(factor))[alive], rtol=1e-6)
        for c, s in found
    )


def test_ranges_are_the_trained_ones(small, file):
    states = [
        slot.arrays()
        for group in small.groups
        if group.transform.kind == "activation"
        for slot in group.slots
    ]
    wanted = set()
    for state in states:
        low, high = np.float32(state["low"]), np.float32(state["high"])
        scale = np.float32((high - low) / np.float32(255))
        wanted.add((scale.item(), int(np.rint(-low / scale)) - 128))
    assert Reading(file[0]).pairs() == wanted
    assert file[1].ranges == len(states)


def test_biases_are_whole_numbers_on_the_products_grid(file):
    reading = Reading(file[0])
    made = {out: node for node in reading.nodes for out in node.output}
    seen = 0
    for node in reading.nodes:
        if node.op_type in ("Conv", "Gemm", "ConvTranspose") and len(node.input) > 2:
            given, weight, bias = (made[name] for name in node.input[:3])
            while given.op_type != "DequantizeLinear":  # a pool, a change of shape
                given = made[given.input[0]]
            step = reading.constants[given.input[1]]
            scales = reading.constants[weight.input[1]]
            codes, units = (reading.constants[name] for name in bias.input[:2])
            assert codes.dtype == np.int32
            np.testing.assert_allclose(units, step * scales, rtol=1e-6)
            assert np.abs(codes.astype("int64")).max() <= 2**30 * (1 + 1e-6)
            seen += 1
    assert seen == 5


def test_what_the_report_says(file):
    needs_exact_products()
    path, report = file
    assert report.size == path.stat().st_size
    assert report.quantized
    assert report.verified
    assert report.io == "float"
    assert report.codes == 8 * 27 + 8 * 9 + 64 + 8 * 4 * 4 + 40
    assert report.islands == ()
    assert report.agreement.examples == 16
    assert report.agreement.largest_lsb <= 2
    assert report.noise.levels == report.agreement.largest_lsb
    assert report.noise.allowed == 5 * max(report.noise.own, 1)
    told = f"plain kernels differ by {report.noise.own}\n  measured with onnxruntime"
    assert told in str(report)
    assert os.listdir(path.parent) == ["residual.onnx"]


def test_onnx_runtime_computes_in_int8(file, small, tmp_path):
    needs_exact_products()
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.optimized_model_filepath = str(tmp_path / "chosen.onnx")
    session = runtime.InferenceSession(
        file[0], options, providers=["CPUExecutionProvider"]
    )
    kinds = [n.op_type for n in onnx.load(tmp_path / "chosen.onnx").graph.node]
    assert kinds.count("QLinearConv") == 3
    assert kinds.count("QGemm") == 1
    assert "Conv" not in kinds
    (made,) = session.run(None, {"image": X[:3]})
    level = export.onnx_runtime.OnnxRuntime(str(file[0]), 1).outputs[0]
    assert level.name == "logits"
    expected = small.predict(X[:3], verbose=0)
    # On one grid: the differences are whole levels, two at most.
    steps = (made - expected) / np.diff(np.unique(expected)).min()
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert np.abs(steps).max() <= 2


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_batches_that_are_open_or_fixed(small, file, tmp_path, batch):
    path = tmp_path / "m.onnx"
    report = export.onnx(small, path, batch_size=batch, data=X[:6])
    assert report.agreement.examples == 6
    (image,) = onnx.load(path).graph.input
    size = image.type.tensor_type.shape.dim[0]
    assert (size.dim_value or size.dim_param) == (batch or "batch")
    predict = export.Predictor(path)
    for rows in (1, 5, 16):
        expected = export.Predictor(file[0])(X[:rows])
        np.testing.assert_array_equal(predict(X[:rows]), expected)


def two_ended():
    first, last = keras.Input((4,), name="z"), keras.Input((4,), name="a")
    difference = layers.Subtract(name="sub")([first, last])
    outputs = {"y": layers.Dense(2, name="d")(first), "b": difference}
    return keras.Model([first, last], outputs)


def test_several_inputs_and_outputs_keep_names_and_order(tmp_path):
    needs_exact_products()
    model, path = two_ended(), tmp_path / "m.onnx"
    x = [RNG.normal(size=(5, 4)).astype("float32") for _ in range(2)]
    for made in (model, dlopt.post_training.quantize(model, x)):
        report = export.onnx(made, path, data=x)
        assert report.agreement.largest_lsb <= 1
        graph = onnx.load(path).graph
        assert [one.name for one in graph.input] == ["z", "a"]
        assert [one.name for one in graph.output] == ["b", "y"]
        predict, expected = export.Predictor(path), made.predict(x, verbose=0)
        found = predict.named({"a": x[1], "z": x[0]})
        assert list(found) == ["b", "y"]
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name], atol=1e-5)


def test_dicts_of_inputs(tmp_path):
    ends = {name: keras.Input((3,), name=name) for name in ("q", "k")}
    model = keras.Model(ends, layers.Subtract()([ends["q"], ends["k"]]))
    x = {"k": np.ones((2, 3), "float32"), "q": np.full((2, 3), 3, "float32")}
    report = export.onnx(model, tmp_path / "m.onnx", data=x)
    assert report.agreement.largest_lsb == 0
    predict = export.Predictor(tmp_path / "m.onnx")
    assert {end.name for end in predict.inputs} == {"k", "q"}
    np.testing.assert_array_equal(predict(x), np.full((2, 3), 2))


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_models_without_quantizers_are_files_of_floats(tmp_path, dtype):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, dtype=dtype),
            layers.BatchNormalization(dtype=dtype),
            layers.Flatten(),
            layers.Dense(3, dtype=dtype),
        ]
    )
    report = export.onnx(model, tmp_path / "m.onnx", data=X)
    assert not report.quantized
    assert report.verified
    assert (report.codes, report.ranges) == (0, 0)
    assert report.agreement.largest_lsb <= (0 if dtype == "float32" else 20)
    kinds = {node.op_type for node in Reading(tmp_path / "m.onnx").nodes}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear", "BatchNormalization"}


def test_weights_alone_are_codes_too(tmp_path):
    model = dlopt.post_training.dynamic_range(residual())
    report = export.onnx(model, tmp_path / "m.onnx", data=X)
    assert not report.quantized
    assert report.codes == 8 * 27 + 8 * 9 + 64 + 8 * 4 * 4 + 40
    assert report.agreement.largest_lsb <= 1
    reading = Reading(tmp_path / "m.onnx")
    assert sum(codes.size for codes, _ in reading.weights(np.int8)) == report.codes
    assert list(reading.weights(np.int32)) == []


def test_kernels_in_another_form_stay_in_float_and_are_named(tmp_path):
    model = keras.Sequential(
        [keras.Input((6, 4)), layers.LSTM(3, name="lstm"), layers.Dense(2, name="d")]
    )
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.FakeQuant(bits=8))])
    small = dlopt.transform(model, recipe)
    x = RNG.normal(size=(4, 6, 4)).astype("float32")
    report = export.onnx(small, tmp_path / "m.onnx", data=x)
    assert report.codes == 6
    (island,) = report.islands
    assert island.startswith("lstm/cell/kernel: the converter wrote")
    assert report.agreement.largest_lsb <= 1


def test_products_of_sequences(tmp_path):
    needs_exact_products()
    model = keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.Dense(5, activation="relu", name="a"),
            layers.EinsumDense("abc,cd->abd", (None, 3), bias_axes="d", name="b"),
        ]
    )
    x = RNG.normal(size=(4, 6, 4)).astype("float32")
    small = dlopt.post_training.quantize(model, x)
    report = export.onnx(small, tmp_path / "m.onnx", data=x)
    assert report.codes == 35
    assert report.agreement.largest_lsb <= 1


def test_writing_twice_gives_the_same_bytes(small, file, tmp_path):
    export.onnx(small, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == file[0].read_bytes()


def test_open_sizes_besides_the_batch(tmp_path):
    model = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 3)])
    export.onnx(model, tmp_path / "m.onnx", data=X)
    predict = export.Predictor(tmp_path / "m.onnx")
    for x in (X, X[:2, :5, :6]):
        np.testing.assert_allclose(predict(x), model(x), atol=1e-5)


def refused(error, text, model, path, **options):
    with pytest.raises(error, match=text):
        export.onnx(model, path, **options)
    assert os.listdir(path.parent) == []


def tiny():
    dense = layers.Dense(2, bias_initializer="ones", name="d")
    return keras.Sequential([keras.Input((4,), name="x"), dense])


def test_arguments_that_are_wrong(tmp_path):
    path = tmp_path / "m.onnx"
    for error, text, options in (
        (ConfigError, "batch_size must be", {"batch_size": 0}),
        (ConfigError, "verify=True. Pass one", {"verify": False, "data": X}),
    ):
        refused(error, text, tiny(), path, **options)
    refused(ConfigError, "end in '.onnx'. Received: .*m.pb", tiny(), tmp_path / "m.pb")
    with pytest.raises(ConfigError, match="Cannot write to the folder .* Create it"):
        export.onnx(tiny(), tmp_path / "no" / "m.onnx")


def test_packages_that_are_missing(tmp_path, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    for name, purpose in (("tf2onnx", "Writing"), ("onnxruntime", "Checking")):

        def find(package, name=name):
            return None if package == name else real(package)

        with monkeypatch.context() as patched:
            patched.setattr(importlib.util, "find_spec", find)
            text = rf"{purpose} .onnx files needs the package '{name}'.*\[onnx\]"
            refused(MissingDependencyError, text, tiny(), tmp_path / "m.onnx")


def test_layers_that_onnx_has_no_operation_for(tmp_path):
    class Inverse(layers.Layer):
        def call(self, x):
            return keras.ops.erfinv(x / 10)

    model = keras.Sequential([keras.Input((4,)), Inverse(name="inverse")])
    text = r"ONNX has no operation for these layers of .*: 'inverse' \(Erfinv\). Write"
    refused(ExportError, text, model, tmp_path / "m.onnx")


def test_models_that_the_converter_refuses(tmp_path):
    class Odd(layers.Layer):
        ready = False

        def call(self, x):
            if self.ready:
                raise NotImplementedError("no inference")
            return x

    model = keras.Sequential([keras.Input((4,)), Odd(name="odd")])
    model.get_layer("odd").ready = True
    text = r"(?s)converter refused .*\(NotImplementedError\).*no inference"
    refused(ExportError, text, model, tmp_path / "m.onnx")


def test_failures_on_the_way_leave_the_old_file(tmp_path, monkeypatch):
    needs_exact_products()
    from keras_dlopt.export import onnx_graph
    from keras_dlopt.export.twin import Range

    module = sys.modules["keras_dlopt.export.onnx"]
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    data = RNG.normal(size=(8, 4)).astype("float32")
    small = dlopt.post_training.quantize(tiny(), data)

    def fails(text, name, value, owner=module):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, value)
            with pytest.raises(ExportError, match=text):
                # Those that the range is of: not all of them are at its end.
                export.onnx(small, path, data=data)
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["m.onnx"]

    def no_kind(self):
        self.proto.node[0].op_type = "Nothing"

    fails("has no valid ONNX form: .*Nothing", "finish", no_kind, onnx_graph.Graph)

    def renamed(twin, batch, real=module._converted):
        proto = real(twin, batch)
        proto.graph.output[0].name = "other"
        return proto

    fails(r"The file names \['other'\], and the model \['d'\]", "_converted", renamed)

    def doubled(graph, ranges, kernels, real=module.put):
        lost = Range("d/other", np.float32(-3), np.float32(7))
        return real(graph, [*ranges, lost], kernels)

    fails(r"trained ranges of \['d/other'\] are not in the file", "put", doubled)

    def shifted(graph, ranges, kernels, real=module.put):
        found = real(graph, ranges, kernels)
        for node in graph._new:
            if "bias" in node.input[0]:
                codes = graph.constants[node.input[0]] + np.int32(10_000)
                node.input[0] = graph.add("wrong", codes)
        return found

    fails(r"'d' of the file is up to \d+ levels of .*does not compute", "put", shifted)


def test_damaged_files_are_an_error_of_one_kind(file, tmp_path):
    data, path = file[0].read_bytes(), tmp_path / "bad.onnx"
    for bad in (b"", data[:100], data[: len(data) // 2], b"\xff" * 64):
        path.write_bytes(bad)
        with pytest.raises(FormatError, match="bad.onnx"):
            export.Predictor(path)(X)


def test_jax_has_no_graph_of_tensorflow(tmp_path):
    pytest.importorskip("jax")
    code = f"""
import keras, pytest
from keras_dlopt import errors, export
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
with pytest.raises(errors.ConfigError, match="runs Keras on 'jax'.*KERAS_BACKEND=ten"):
    export.onnx(model, {str(tmp_path / "m.onnx")!r})
"""
    subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"KERAS_BACKEND": "jax"},
        check=True,
        timeout=120,
    )
