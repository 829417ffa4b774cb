"""SavedModel folders compute what was trained, under the same names, or are absent."""

import os
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import export
from keras_dlopt.errors import ConfigError, DataError, ExportError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 6, 6, 2)).astype("float32")


def net():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2), name="image"),
            layers.Conv2D(4, 3, activation="relu", name="c"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="logits"),
        ]
    )


def served(path, **inputs):
    """By TensorFlow alone."""
    call = tf.saved_model.load(path).signatures["serving_default"]
    found = call(**{k: tf.constant(v) for k, v in inputs.items()})
    return {k: v.numpy() for k, v in found.items()}


def test_a_plain_model(tmp_path, capfd):
    model, path = net(), tmp_path / "m"
    capfd.readouterr()
    report = export.saved_model(model, path)
    assert capfd.readouterr() == ("", "")
    assert report.verified
    assert not report.quantized
    assert report.agreement.examples == 7
    assert report.agreement.largest_lsb == 0
    sizes = [f.stat().st_size for f in path.rglob("*") if f.is_file()]
    assert report.size == sum(sizes)
    found = served(path, image=X)
    assert list(found) == ["logits"]
    np.testing.assert_allclose(found["logits"], model.predict(X, verbose=0), atol=1e-6)
    assert os.listdir(tmp_path) == ["m"]


def test_weights_and_quantizers_are_what_was_trained(tmp_path):
    small = dlopt.post_training.quantize(net(), X)
    report = export.saved_model(small, tmp_path / "m", data=X)
    assert not report.quantized
    assert report.ranges == 3
    assert f"measured with tensorflow {tf.__version__}" in str(report)
    assert report.agreement.examples == 20
    expected = small.predict(X, verbose=0)
    found = served(tmp_path / "m", image=X)["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # On the grid of the last quantizer.
    levels = found / np.diff(np.unique(expected)).min()
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-2)


def test_quantizers_of_other_widths_stay_as_they_are(tmp_path):
    recipe = dlopt.Recipe(
        [
            (dlopt.at("c/output"), dlopt.FakeQuantActivation(bits=4)),
            (dlopt.named("kernel"), dlopt.FakeQuant(bits=4)),
        ]
    )
    small = dlopt.transform(net(), recipe)
    small(X, training=True)
    report = export.saved_model(small, tmp_path / "m", data=X)
    assert report.verified
    found = served(tmp_path / "m", image=X)["logits"]
    np.testing.assert_allclose(found, small.predict(X, verbose=0), atol=1e-5)


def test_several_inputs_and_outputs_keep_their_names(tmp_path):
    first, last = (
        keras.Input((4,), name="z"),
        keras.Input((2,), name="ids", dtype="int32"),
    )
    total = keras.ops.cast(keras.ops.sum(last, axis=1, keepdims=True), "float32")
    outputs = {"y": layers.Dense(2, name="d")(first), "b": first + total}
    model = keras.Model([first, last], outputs)
    z, ids = (
        RNG.normal(size=(3, 4)).astype("float32"),
        np.array([[1, 2], [0, 5], [7, 7]]),
    )
    for data in (None, [z, ids], {"ids": ids, "z": z}):
        assert export.saved_model(model, tmp_path / "m", data=data).verified
    found = served(tmp_path / "m", ids=ids.astype("int32"), z=z)
    expected = model.predict([z, ids], verbose=0)
    for name in ("b", "y"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_open_sizes_need_data_to_be_compared(tmp_path):
    model = keras.Sequential([keras.Input((None, None, 2)), layers.Conv2D(3, 3)])
    assert not export.saved_model(model, tmp_path / "m").verified
    assert export.saved_model(model, tmp_path / "m", data=X).verified
    assert not export.saved_model(model, tmp_path / "m", verify=False).verified


def test_an_older_one_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "m"
    path.mkdir()
    export.saved_model(net(), path)  # an empty folder is no loss
    (path / "assets" / "old.txt").write_text("old")
    model = keras.Sequential([keras.Input((2,), name="x"), layers.Dense(1, name="y")])
    export.saved_model(model, path)
    assert not (path / "assets" / "old.txt").exists()
    assert served(path, x=X[0, 0])["y"].shape == (6, 1)
    assert os.listdir(tmp_path) == ["m"]


def refused(error, text, model, path, **options):
    before = {f: f.read_bytes() for f in path.parent.rglob("*") if f.is_file()}
    with pytest.raises(error, match=text):
        export.saved_model(model, path, **options)
    after = {f: f.read_bytes() for f in path.parent.rglob("*") if f.is_file()}
    assert before == after
    assert not [name for name in os.listdir(path.parent) if name.startswith(".")]


def test_places_that_are_taken(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes").write_text("mine")
    for name in ("file", "folder"):
        text = f"{name}' is there already, and is no SavedModel to replace. Choose"
        refused(ConfigError, text, net(), tmp_path / name)
    refused(DataError, "takes batches of", net(), tmp_path / "m", data=X[:, :3])


class Odd(layers.Layer):
    """Something else once the model is built."""

    ready = False

    def call(self, x):
        if self.ready:
            raise NotImplementedError("no inference")
        return x


def test_failures_leave_what_was_there(tmp_path, monkeypatch):
    module = sys.modules["keras_dlopt.export.saved_model"]
    path = tmp_path / "m"
    export.saved_model(net(), path)
    model = keras.Sequential([keras.Input((4,)), Odd(name="odd")])
    model.get_layer("odd").ready = True
    text = r"(?s)cannot write .* \(NotImplementedError\): .*no inference"
    refused(ExportError, text, model, path)

    def other(model, example, real=module.bake):
        plain, ranges, kernels = real(model, example)
        plain = keras.models.clone_model(plain)
        return plain, ranges, kernels

    with monkeypatch.context() as patched:
        patched.setattr(module, "bake", other)
        text = r"'logits' of the SavedModel is off the model's by \d.* Report it"
        refused(ExportError, text, net(), path)

    real = os.replace

    def full(source, target):
        if str(source).endswith(".n"):
            raise OSError(28, "No space left on device")
        return real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        refused(OSError, "No space left", net(), path)
