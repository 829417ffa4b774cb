"""Several models side by side."""

import importlib.util

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import keras_dlopt as dlopt
from keras_dlopt import report
from keras_dlopt.cli import app
from keras_dlopt.errors import ConfigError, MissingDependencyError
from keras_dlopt.measure.latency import Latency
from keras_dlopt.measure.npu import NpuEstimate
from keras_dlopt.report import measuring, runners


def network(name="net"):
    layers = [keras.Input((8, 8, 2)), keras.layers.Conv2D(4, 3, activation="relu")]
    layers += [keras.layers.Flatten(), keras.layers.Dense(3)]
    for layer in layers[1::2]:  # the converter drops biases of zeros
        layer.bias_initializer = keras.initializers.Ones()
    return keras.Sequential(layers, name=name)


def test_a_model_and_its_files_side_by_side(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = network()
    model.save(tmp_path / "net.keras")
    dlopt.save_compressed(model, tmp_path / "net.dlopt")
    dlopt.export.litert(model, tmp_path / "net.tflite", verify=False)
    files = [tmp_path / f"net.{kind}" for kind in ("keras", "dlopt", "tflite")]
    found = report.measure([model, *files], calls=2)
    assert [m.name for m in found.models] == ["net", *(f.name for f in files)]
    assert {m.parameters for m in found.models} == {model.count_params()}
    assert {m.macs for m in found.models} == {36 * 18 * 4 + 144 * 3}
    assert [m.file_bytes for m in found.models[1:]] == [f.stat().st_size for f in files]
    # The same model in memory makes the same file, but for dates and names in it.
    in_memory = found.models[0].file_bytes
    assert in_memory == pytest.approx(files[0].stat().st_size, rel=0.02)
    assert [set(m.latency) for m in found.models] == [{"graph"}] * 3 + [{"litert"}]
    text = str(found)
    for part in ("Keras, tf.function, ms", "LiteRT, ratio", "net.tflite", "3,024"):
        assert part in text
    lines = found.to_markdown().splitlines()
    assert lines[0] == "|  | net | net.keras | net.dlopt | net.tflite |"
    assert "| file, bytes |" in found.to_markdown()


def test_every_runtime_computes_the_model():
    pytest.importorskip("ai_edge_litert")
    model, x = network(), np.ones((2, 8, 8, 2), "float32")
    (expected,) = runners.of_model(model, "graph", x, 1)()
    np.testing.assert_allclose(expected, model(x), rtol=1e-6, atol=1e-6)
    (compiled,) = runners.of_model(model, "xla", x, 1)()
    np.testing.assert_allclose(compiled, expected, rtol=1e-5, atol=1e-5)
    (converted,) = runners.of_model(model, "litert", x, 1)()
    assert converted.shape == expected.shape


def missing(package):
    return importlib.util.find_spec(package) is None


def test_openvino_runs_a_model_or_is_asked_for():
    model, x = network(), np.ones((1, 8, 8, 2), "float32")
    if missing("openvino"):
        with pytest.raises(MissingDependencyError, match=r"keras-dlopt\[openvino\]"):
            runners.of_model(model, "openvino", x, 1)
        return
    outputs = runners.of_model(model, "openvino", x, 1)()
    assert np.asarray(next(iter(outputs.values()))).shape == (1, 3)


def test_onnx_runtime_runs_a_file_or_is_asked_for(tmp_path):
    path = tmp_path / "relu.onnx"
    if missing("onnx") or missing("onnxruntime"):
        path.touch()
        with pytest.raises(MissingDependencyError, match=r"keras-dlopt\[onnx\]"):
            report.measure(path, calls=1)
        return
    from onnx import TensorProto, helper, save

    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3])
        for name in "xy"
    ]
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "relu", ends[:1], ends[1:])
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    (given,) = runners.of_file(path, "onnxruntime", 1)()
    assert given.shape == (1, 3)
    assert (given >= 0).all()
    (found,) = report.measure(path, calls=2).models
    assert set(found.latency) == {"onnxruntime"}
    assert found.macs is None


TIMES = {
    "graph": Latency(0.004, 0.003, 0.005, 9),
    "xla": Latency(0.002, 0.001, 0.003, 9),
}
ESTIMATE = NpuEstimate(
    "ethos-u55-128",
    "system",
    0.0012,
    600_000,
    4096,
    512,
    99,
    4,
    (("MEAN", "m", "big"),),
)


def test_the_table_says_what_it_shows():
    one = report.Measured("a", 10, 20, 30, 40, 50, TIMES)
    two = report.Measured("b", 5, None, None, None, 25, {}, ESTIMATE, ("own",))
    table = report.Measurements((one, two), 2, 1).table()
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["parameters"] == ("10", "5")
    assert rows["MACs"] == ("20", "")
    assert rows["Keras, tf.function, ms"] == ("4.000 (3.000 to 5.000)", "")
    assert rows["Keras, XLA, ratio"] == ("0.50x", "")
    assert rows["estimate, ms"] == ("", "1.200")
    assert rows["estimate, operators on the CPU"] == ("", "1 of 4, 25 %")
    for part in ("Threads: 2; TensorFlow: 1.", "nothing was run", "MEAN (big)"):
        assert part in table.note
    assert "b: MACs without those of own." in table.note


def test_names_that_are_equal_are_told_apart():
    models = [network(), network(), network()]
    found = report.measure(models, runtimes=())
    assert [m.name for m in found.models] == ["net", "net (2)", "net (3)"]
    assert "ms" not in str(found)
    assert len(report.measure(network(), runtimes=()).models) == 1


class Unsaved(keras.layers.Layer):
    """A class without a config that could be written."""

    def __init__(self, size):
        super().__init__()
        self.dense = keras.layers.Dense(int(size.item()))

    def call(self, inputs):
        return self.dense(inputs)


def test_a_model_that_no_file_holds_is_measured():
    model = keras.Sequential([keras.Input((4,)), Unsaved(np.array([2]))])
    (found,) = report.measure(model, runtimes=()).models
    assert (found.macs, found.parameters) == (8, 10)


@pytest.mark.parametrize(
    ("models", "options", "text"),
    [
        ([], {}, "There is nothing to measure. Give a model or a file."),
        (["none.keras"], {}, "There is no file 'none.keras'."),
        (["a.pt"], {}, "'a.pt' is no file that can be measured: its name must end"),
        ([3], {}, "measure takes Keras models and paths of files. Received: 3."),
        (["a.keras"], {"runtimes": ["tpu"]}, "runtimes .*'tpu'"),
        (["a.keras"], {"npu": "u55"}, "npu .*'u55'"),
        (["a.keras"], {"threads": 0}, "threads must be .* Received: 0"),
        (["a.keras"], {"calls": 0}, "calls must be .* Received: 0"),
    ],
)
def test_wrong_arguments(models, options, text):
    with pytest.raises(ConfigError, match=text):
        report.measure(models, **options)


def test_tensorflows_runtimes_elsewhere(monkeypatch):
    monkeypatch.setattr(runners, "on_tensorflow", lambda: False)
    with pytest.raises(ConfigError, match="Measure files there: 'model.tflite'"):
        runners.of_model(network(), "graph", np.zeros((1, 8, 8, 2)), 1)


def test_integers_and_floats_are_drawn():
    tokens, rest = keras.Input((5,), dtype="int32"), keras.Input((2,))
    model = keras.Model([tokens, rest], [tokens, rest])
    ids, x = runners.example_of(model)
    assert (ids.dtype, ids.max(), x.dtype) == ("int32", 0, "float32")
    assert np.abs(x).max() > 0


def test_compare_times_both():
    x, y = np.zeros((6, 8, 8, 2), "float32"), np.arange(6) % 3
    found = report.compare(network(), network(), (x, y), latency=True)
    assert list(found.latency) == ["before", "after"]
    titles = [block.title for block in found.document().blocks]
    assert "Time of one call" in titles
    assert "Time of one call" in shown(found)
    assert "Time of one call" not in shown(report.compare(network(), network(), (x, y)))


def shown(result):
    """What `rich.print` would show."""
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    console.print(result)
    return console.file.getvalue()


def test_the_command(tmp_path):
    network().save(tmp_path / "a.keras")
    run = CliRunner().invoke
    path = str(tmp_path / "a.keras")
    found = run(app.app, ["measure", path, "--calls", "2", "--markdown"])
    assert found.exit_code == 0, found.output
    assert "| Keras, tf.function, ms |" in found.output
    found = run(app.app, ["measure", path, "--no-time"])
    assert "MACs" in found.output
    assert "ms" not in found.output
    found = run(app.app, ["measure", str(tmp_path / "b.keras")])
    assert found.exit_code == 2
    assert "There is no file" in found.output


def test_threads_of_tensorflow_are_told(monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "many")
    measuring.limit_threads(1)  # TensorFlow may have begun: then it stays as it is
    assert measuring._tensorflow_threads() in (0, 1)
