"""Names and order in the files are the model's, whatever the converter made of them."""

import importlib
import itertools

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import export
from keras_dlopt.errors import ExportError
from keras_dlopt.export.ends import Ends, arrange, ends_of, unique
from keras_dlopt.export.flat import Flat
from keras_dlopt.export.quiet import silence

RNG = np.random.default_rng(0)
# Neither alphabetical nor of growing length: what a sort would change.
NAMES = ("zeta", "alpha", "mid", "b")


def batches(count, rows=16):
    """Inputs of one shape that nobody can mix up: each ten times the one before."""
    return [
        (RNG.normal(size=(rows, 3)) * 10.0**k).astype("float32") for k in range(count)
    ]


def four():
    """Four inputs and two outputs of one shape each, on grids far apart."""
    inputs = [keras.Input((3,), name=name) for name in NAMES]
    made = [
        layers.Dense(4, name=f"d_{name}")(x)
        for name, x in zip(NAMES, inputs, strict=True)
    ]
    both = layers.Concatenate(name="cat")(made)
    outputs = [
        layers.Dense(2, name="out2")(both),
        layers.Dense(2, name="out1")(made[0]),
    ]
    return inputs, outputs


def listed():
    return keras.Model(*four())


def keyed():
    inputs, outputs = four()
    return keras.Model(
        dict(zip(NAMES, inputs, strict=True)),
        {"wide": outputs[0], "narrow": outputs[1]},
    )


def nested():
    (a, b, c, d), (out2, out1) = four()
    return keras.Model(
        {"x": [a, b], "first": {"q": c, "b": d}}, {"r": [out2], "b": (out1,)}
    )


def as_nested(data):
    return {"x": data[:2], "first": {"q": data[2], "b": data[3]}}


def flat(outputs):
    return keras.tree.flatten(outputs)


def follows(model, data, got):
    """Equal outputs; the two have ranges far apart, so none stands for the other."""
    expected = flat(model.predict(data, verbose=0))
    for ours, theirs in zip(expected, flat(got), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, None])
def test_lists_dicts_and_nests_in_float(tmp_path, batch_size):
    path, data = tmp_path / "m.tflite", batches(4)
    by_name = dict(zip(NAMES, data, strict=True))
    for make, given, others in (
        (listed, data, [by_name]),
        (keyed, by_name, [[by_name[name] for name in sorted(NAMES)]]),
        (nested, as_nested(data), [by_name]),
    ):
        model = make()
        report = export.litert(model, path, data=given, batch_size=batch_size)
        assert report.agreement.largest_lsb <= 1
        for one in (given, *others):
            follows(model, given, export.run_litert(path, one))


def test_names_of_the_file(tmp_path):
    path = tmp_path / "m.tflite"
    for make, inputs, outputs in (
        (listed, NAMES, ("out2", "out1")),
        (keyed, tuple(sorted(NAMES)), ("narrow", "wide")),
        (nested, ("b", "mid", "zeta", "alpha"), ("out1", "out2")),
    ):
        export.litert(make(), path)
        predictor = export.Predictor(path)
        assert tuple(end.name for end in predictor.inputs) == inputs
        assert tuple(end.name for end in predictor.outputs) == outputs
        found = predictor.named(dict(zip(NAMES, batches(4), strict=True)))
        assert tuple(found) == outputs
        # The runtime's own account of the file, in its own order.
        runner = _interpreter(path).get_signature_runner()
        assert sorted(runner.get_input_details()) == sorted(inputs)


def _interpreter(path):
    from ai_edge_litert.interpreter import Interpreter

    it = Interpreter(model_path=str(path))
    it.allocate_tensors()
    return it


@pytest.mark.parametrize("io", ["float", "int8"])
def test_int8_ends_of_one_shape_are_not_swapped(tmp_path, io):
    path, data, model = tmp_path / "m.tflite", batches(4, rows=64), listed()
    small = dlopt.post_training.quantize(model, data)
    report = export.litert(small, path, data=data, io=io)
    assert report.agreement.largest_lsb <= 2
    expected = model.predict(data, verbose=0)
    got = export.run_litert(path, data)
    for ours, theirs in zip(expected, got, strict=True):
        assert np.abs(ours - theirs).max() < 0.05 * np.abs(ours).max()
    # The independent reader of the file: each name has the grid of its input.
    details = _interpreter(path).get_signature_runner().get_input_details()
    if io == "int8":
        scales = [details[name]["quantization"][0] for name in NAMES]
        assert scales == sorted(scales)
        assert all(b > 4 * a for a, b in itertools.pairwise(scales))


@pytest.mark.parametrize("io", ["float", "int8"])
def test_a_file_with_two_outputs_swapped_is_refused(tmp_path, io, monkeypatch):
    path, data = tmp_path / "m.tflite", batches(4, rows=64)
    small = dlopt.post_training.quantize(listed(), data)
    module = importlib.import_module("keras_dlopt.export.litert")
    monkeypatch.setattr(module, "arrange", lambda file, ends: _swap(file))
    with pytest.raises(
        ExportError, match="something else than the model: .* [0-9]{3,} "
    ):
        export.litert(small, path, data=data, io=io)


def _swap(file):
    """The outputs in the other order."""
    file.outputs.reverse()
    arrange(file, Ends(None, NAMES, ("out1", "out2")))


def twelve():
    """A model of twelve inputs and as many outputs, each of another size."""
    inputs = [keras.Input((3,)) for _ in range(12)]
    model = keras.Model(inputs, [layers.Dense(2)(x) for x in inputs])
    for k, layer in enumerate(model.layers[12:]):
        layer.kernel.assign(layer.kernel * 10.0**-k)
    return model


def test_more_than_ten_inputs_and_outputs(tmp_path):
    path, data = tmp_path / "m.tflite", batches(12)
    model = twelve()
    for batch_size in (1, None):
        export.litert(model, path, batch_size=batch_size)
        follows(model, data, export.run_litert(path, data))
    names = [end.name for end in export.Predictor(path).inputs]
    assert names == [f"input_{k}" for k in range(12)]


def test_one_tensor_twice_and_an_input_passed_through(tmp_path):
    path, (x,) = tmp_path / "m.tflite", batches(1)
    given = keras.Input((3,), name="zeta")
    made = layers.Dense(2, name="alpha")(given)
    model = keras.Model(given, [made, given, made])
    export.litert(model, path)
    follows(model, x, export.run_litert(path, x))


class Keyed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return {"u": self.dense(x["q"]), "e": 100 * self.dense(x["c"])}


def test_subclassed_models_of_dicts(tmp_path):
    path, (q, c) = tmp_path / "m.tflite", batches(2)
    model, data = Keyed(), {"q": q, "c": c}
    model(data)
    export.litert(model, path, data=data, example=data)
    follows(model, data, export.run_litert(path, data))
    assert list(export.Predictor(path).named(data)) == ["e", "u"]


@pytest.mark.slow
def test_files_that_keras_wrote_without_names(tmp_path):
    path, data = tmp_path / "m.tflite", batches(12)
    model = twelve()
    specs = [keras.InputSpec(shape=(1, 3), dtype="float32") for _ in model.inputs]
    with silence():
        model.export(str(path), format="litert", verbose=False, input_signature=[specs])
    follows(model, data, export.run_litert(path, data))


def test_names_are_made_fit_for_a_signature():
    assert unique(["a/b", "a_b", "0", "", "a.b"]) == (
        "a_b",
        "a_b_1",
        "x0",
        "x",
        "a_b_2",
    )


class OddKeys(keras.Model):
    def call(self, x):
        return x["z/1"] - x["a b"]


def test_odd_keys_feed_the_file(tmp_path):
    path, (a, b) = tmp_path / "m.tflite", batches(2)
    model, data = OddKeys(), {"z/1": a, "a b": b}
    model(data)
    export.litert(model, path, data=data, example=data)
    follows(model, data, export.run_litert(path, data))
    assert [end.name for end in export.Predictor(path).inputs] == ["a_b", "z_1"]


def test_a_signature_of_other_names_is_refused(tmp_path):
    path = tmp_path / "m.tflite"
    export.litert(listed(), path, lean=False)
    text = r"inputs \['alpha', .* 'zeta'\] and 2 outputs, and .*'x0'.* and 1\."
    with pytest.raises(ExportError, match=text):
        arrange(Flat(path), ends_of(keras.Model(*_renamed())))


def _renamed():
    inputs = [keras.Input((3,), name=f"x{i}") for i in range(4)]
    return inputs, layers.Add()(inputs)
