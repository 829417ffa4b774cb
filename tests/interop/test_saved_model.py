"""SavedModels of Keras 2 as ordinary Keras 3 models; hostile ones are refused."""

import json
import os
import pathlib
import shutil
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dlopt.errors import FormatError
from keras_dlopt.interop import load, saved_model
from keras_dlopt.interop.tfmot.files import metadata_nodes

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SOURCE = GOLDEN / "keras2_saved_model"
TINY = pathlib.Path(os.environ.get("KERAS_DLOPT_DATA", "data")) / "mlperf_tiny"


@pytest.fixture
def folder(tmp_path):
    """A copy of the SavedModel, to damage."""
    return pathlib.Path(shutil.copytree(SOURCE, tmp_path / "net"))


@pytest.fixture
def expected():
    """Inputs, and what Keras 2 computed of them."""
    with np.load(GOLDEN / "keras2_saved_model.npz") as made:
        return made["x"], made["y"]


def _graph(folder):
    from tensorflow.core.protobuf import saved_model_pb2

    file = folder / "saved_model.pb"
    return saved_model_pb2.SavedModel.FromString(file.read_bytes())


def _as_of_tensorflow_2_3(folder, change=lambda text: text):
    """Puts the metadata where older versions had it."""
    saved, file = _graph(folder), folder / "keras_metadata.pb"
    nodes = saved.meta_graphs[0].object_graph_def.nodes
    for number, _, metadata in metadata_nodes(file.read_bytes()):
        nodes[number].user_object.metadata = change(json.dumps(metadata))
    file.unlink()
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())


def test_layers_and_weights_without_tf_keras(monkeypatch, expected):
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    model = load(SOURCE)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds[1:4] == ["DepthwiseConv2D", "ReLU", "Sequential"]
    x, y = expected
    np.testing.assert_allclose(model(x), y, rtol=0, atol=1e-6)


def test_metadata_of_tensorflow_2_3(folder, expected):
    _as_of_tensorflow_2_3(folder)
    x, y = expected
    np.testing.assert_allclose(load(folder)(x), y, rtol=0, atol=1e-6)


def _rename_dense(text):
    return text.replace('"class_name": "Dense"', '"class_name": "Unknown"')


def _give_code(text):
    code = '"function_type": "lambda", "function": {"class_name": "__tuple__", "items"'
    return text.replace(
        '"class_name": "ReLU", "config": {',
        f'"class_name": "Lambda", "config": {{{code}: ["4wEA", null, null]}}, ',
    )


@pytest.mark.parametrize("change", [_rename_dense, _give_code])
def test_unknown_classes_and_code_are_refused(folder, change):
    _as_of_tensorflow_2_3(folder, change)
    with pytest.raises(FormatError, match=r"net is no model that Keras .* can read"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("saved_model.pb", "no saved_model.pb in it"),
        ("keras_metadata.pb", "its root is None"),
        ("variables/variables.index", "no SavedModel with the layers"),
        ("variables/variables.data-00000-of-00001", "no SavedModel with the layers"),
    ],
)
def test_missing_parts(folder, file, reason):
    (folder / file).unlink()
    with pytest.raises(FormatError, match=reason):
        load(folder)


@pytest.mark.parametrize("file", ["saved_model.pb", "keras_metadata.pb"])
def test_damaged_parts(folder, file):
    data = bytearray((folder / file).read_bytes())
    (folder / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match="no SavedModel with the layers"):
        load(folder)
    (folder / file).write_bytes(os.urandom(1000))
    with pytest.raises(FormatError, match="no SavedModel with the layers"):
        load(folder)


def test_a_variable_that_is_not_stored(folder):
    saved = _graph(folder)
    nodes = saved.meta_graphs[0].object_graph_def.nodes
    layers = {c.local_name: c.node_id for c in nodes[0].children}
    for child in nodes[layers["layer-1"]].children:
        if child.local_name == "depthwise_kernel":
            child.local_name = "elsewhere"
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    with pytest.raises(FormatError, match=r"depthwise_kernel' is not stored in it"):
        load(folder)


def test_two_layers_of_one_name(folder):
    _as_of_tensorflow_2_3(folder, lambda t: t.replace('"name": "re_lu"', '"name": "e"'))
    _as_named = _graph(folder)
    nodes = _as_named.meta_graphs[0].object_graph_def.nodes
    for node in nodes:
        text = node.user_object.metadata
        node.user_object.metadata = text.replace('"name": "end"', '"name": "e"')
    (folder / "saved_model.pb").write_bytes(_as_named.SerializeToString())
    with pytest.raises(FormatError, match="two layers have the name 'e'"):
        load(folder)


def test_too_many_bytes(folder, monkeypatch):
    monkeypatch.setattr(saved_model, "MAX_BYTES", 100)
    with pytest.raises(FormatError, match="its arrays have more than 100 bytes"):
        load(folder)


def _change_program(folder, change):
    saved = _graph(folder)
    change(saved.meta_graphs[0])
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())


def test_a_program_that_does_more_than_compute_is_not_run(folder, tmp_path, expected):
    victim = tmp_path / "victim"

    def write_a_file(graph):
        for function in graph.graph_def.library.function:
            node = function.node_def.add(name="w", op="WriteFile")
            node.input.extend(["name:output:0", "text:output:0"])
            for name, value in (("name", str(victim)), ("text", "here")):
                made = function.node_def.add(name=name, op="Const")
                made.attr["dtype"].type = 7
                tensor = made.attr["value"].tensor
                tensor.dtype = 7
                tensor.string_val.append(value.encode())
            function.control_ret["w"] = "w"
            function.signature.control_output.append("w")

    _change_program(folder, write_a_file)
    with pytest.warns(UserWarning, match=r"do more than compute: \['WriteFile'\]"):
        model = load(folder)
    assert not victim.exists()
    np.testing.assert_allclose(model(expected[0]), expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["PyFuncStateless", "ReadFile"])
def test_operations_that_are_no_arithmetic_are_not_run(folder, kind):
    def add(graph):
        for function in graph.graph_def.library.function:
            function.node_def.add(name="w", op=kind)

    _change_program(folder, add)
    with pytest.warns(UserWarning, match=f"more than compute: .'{kind}'"):
        load(folder)


def test_a_resource_is_not_made(folder):
    def add(graph):
        graph.object_graph_def.nodes.add().resource.device = ""

    _change_program(folder, add)
    with pytest.warns(UserWarning, match=r"more than compute: \['a resource'\]"):
        load(folder)


def test_a_program_without_signature(folder):
    def remove(graph):
        del graph.signature_def["serving_default"]

    _change_program(folder, remove)
    with pytest.warns(UserWarning, match="it has no signature 'serving_default'"):
        load(folder)
    load(folder, compare=False)  # silent


def test_inputs_of_other_names(folder):
    old, new = '["image", 0, 0, {}]', '["picture", 0, 0, {}]'
    _as_of_tensorflow_2_3(
        folder,
        lambda t: (
            t.replace(old, new)
            .replace('"name": "image"', '"name": "picture"')
            .replace('["image", 0, 0]', '["picture", 0, 0]')
        ),
    )
    with pytest.warns(UserWarning, match=r"other names than the model's: \['image'\]"):
        load(folder)


@pytest.mark.advice("interop/files.py", "Compare them by hand, or pass compare=False")
def test_not_compared_is_followed(folder, expected):
    def remove(graph):
        del graph.signature_def["serving_default"]

    _change_program(folder, remove)
    with pytest.warns(UserWarning, match="not compared with its own program"):
        load(folder)
    x, y = expected
    model = load(folder, compare=False)
    np.testing.assert_allclose(model(x), y, rtol=0, atol=1e-6)


@pytest.mark.advice("interop/program.py", "Compare them by hand after")
def test_other_outputs_are_refused(folder, expected):
    _as_of_tensorflow_2_3(folder, lambda t: t.replace('"softmax"', '"sigmoid"'))
    with pytest.raises(FormatError, match=r"other outputs: off by .* of the largest"):
        load(folder)
    x, y = expected
    model = load(folder, compare=False)
    assert np.abs(np.asarray(model(x)) - y).max() > 0.01


def test_a_program_alone_is_written_again_as_h5(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.export(tmp_path / "saved", verbose=False)
    with pytest.raises(
        FormatError, match=r"its root is None.*model\.save\('model\.h5'"
    ):
        load(tmp_path / "saved")
    model.save(tmp_path / "model.h5")
    x = np.ones((1, 4), "float32")
    np.testing.assert_array_equal(load(tmp_path / "model.h5")(x), model(x))


def test_a_program_of_tensorflow_1(folder):
    _change_program(folder, lambda graph: graph.ClearField("object_graph_def"))
    with pytest.raises(FormatError, match="it is of TensorFlow 1"):
        load(folder)


@pytest.mark.skipif(not TINY.is_dir(), reason="KERAS_DLOPT_DATA has no mlperf_tiny")
def test_keyword_spotting_of_mlperf_tiny(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    model = load(TINY / "kws_ref_model")
    assert model.count_params() == 24_908
    assert model.output_shape == (None, 12)


def test_the_slots_of_an_optimizer_need_no_tf_keras(tmp_path, monkeypatch):
    from tensorflow.core.protobuf import saved_model_pb2

    monkeypatch.setitem(sys.modules, "tf_keras", None)
    folder = tmp_path / "trained"
    shutil.copytree(SOURCE, folder)
    saved = saved_model_pb2.SavedModel.FromString(
        (folder / "saved_model.pb").read_bytes()
    )
    nodes = saved.meta_graphs[0].object_graph_def.nodes
    weight, slot = [i for i, n in enumerate(nodes) if n.HasField("variable")][:2]
    nodes[0].children.add(node_id=len(nodes), local_name="optimizer")
    optimizer = nodes.add()
    optimizer.user_object.identifier = "optimizer"
    optimizer.user_object.version.producer = 1
    optimizer.slot_variables.add(
        original_variable_node_id=weight, slot_name="m", slot_variable_node_id=slot
    )
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    slots = []

    def seen(place, loads=tf.saved_model.load):
        data = pathlib.Path(place, "saved_model.pb").read_bytes()
        graph = saved_model_pb2.SavedModel.FromString(data).meta_graphs[0]
        slots.extend(len(n.slot_variables) for n in graph.object_graph_def.nodes)
        return loads(place)

    monkeypatch.setattr(tf.saved_model, "load", seen)
    assert load(folder).count_params() == load(SOURCE).count_params()
    assert slots
    assert not any(slots)


def test_what_tensorflow_does_not_load_is_read_and_not_compared(monkeypatch):
    def fails(folder):
        raise AttributeError("no slots")

    monkeypatch.setattr(tf.saved_model, "load", fails)
    with pytest.warns(UserWarning, match=r"not run: TensorFlow does not .*no slots"):
        assert load(SOURCE).count_params()


def test_nested_models_in_h5_of_keras_2(tmp_path, expected):
    saved_model.write_h5(saved_model.read(SOURCE), tmp_path / "net.h5")
    x, y = expected
    np.testing.assert_allclose(load(tmp_path / "net.h5")(x), y, rtol=0, atol=1e-6)


def test_nested_models_in_h5_of_keras_3(tmp_path):
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)], name="inner")
    x = keras.Input((3,))
    once = inner(x)
    model = keras.Model(x, [keras.layers.ReLU()(inner(once)), inner(once)])
    model.save(tmp_path / "net.h5")
    given = np.ones((1, 3), "float32")
    both = zip(load(tmp_path / "net.h5")(given), model(given), strict=True)
    for one, other in both:
        np.testing.assert_array_equal(one, other)
