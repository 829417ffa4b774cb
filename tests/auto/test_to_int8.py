"""The one call from a trained model to its int8 file."""

import os
import pathlib

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.errors import DataError, FormatError
from keras_dlopt.export.runtime import interpreter

L = keras.layers
TINY = pathlib.Path(os.environ.get("KERAS_DLOPT_DATA", "")) / "mlperf_tiny"


def network():
    """With two dead channels, a normalization, a scaling and a softmax inside."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = L.Rescaling(1 / 255)(inputs)
    x = L.Conv2D(8, 3, name="conv")(x)
    x = L.BatchNormalization(name="norm")(x)
    x = L.ReLU()(x)
    x = L.Conv2D(6, 3, activation="relu", name="next")(x)
    x = L.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, L.Dense(3, activation="softmax", name="top")(x))
    norm = model.get_layer("norm")
    norm.gamma.assign([0, 0, 1, 2, -1, 1, 1, 1])
    norm.beta.assign([-1, -2, 0, 0.1, 0.2, 0, 0, 0])
    return model


@pytest.fixture(scope="module")
def images():
    drawn = np.random.default_rng(0).uniform(0, 255, (96, 8, 8, 3))
    return drawn.astype("float32")


def outputs(path, x):
    runner = interpreter(path, threads=1)
    given, made = runner.get_input_details()[0], runner.get_output_details()[0]
    rows = []
    for example in x:
        runner.set_tensor(given["index"], example[None])
        runner.invoke()
        rows.append(runner.get_tensor(made["index"])[0])
    return np.array(rows)


@pytest.mark.parametrize("form", ["model", "keras", "h5"])
def test_a_model_or_its_file_becomes_a_small_verified_file(form, images, tmp_path):
    model = network()
    before = model.get_weights()
    given = model
    if form != "model":
        given = tmp_path / f"model.{form}"
        model.save(given)
    made = dlopt.auto.to_int8(given, tmp_path / "a.tflite", images)
    assert made.export.verified
    assert made.skipped == {}
    full = model.count_params()
    dead = 2 * (27 + 1 + 4 + 9 * 6)  # their kernel, bias, norm, and where they are read
    folded = 4 * 6
    assert list(made.parameters.values()) == [full, full - dead, full - dead - folded]
    assert made.removal.channels_removed == 2
    assert made.moved < 1e-6
    got = outputs(made.export.path, images[:32])
    # Three probabilities of 8 bits, after four layers of 8 bits.
    np.testing.assert_allclose(got, model(images[:32]), atol=0.03)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert "without dead channels" in str(made)


def test_a_subclassed_model_says_what_was_left_out(images, tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = L.Conv2D(4, 3), L.GlobalAveragePooling2D()
            self.top = L.Dense(2)

        def call(self, x):
            x = self.conv(x)
            return self.top(self.pool(x) if len(x.shape) == 4 else x)

    model = Own()
    model(images[:1])
    made = dlopt.auto.to_int8(model, tmp_path / "a.tflite", images)
    assert made.export.verified
    np.testing.assert_allclose(
        outputs(made.export.path, images[:8]), model(images[:8]), rtol=0.1, atol=3.0
    )


def test_bad_input_leaves_no_file(tmp_path):
    path = tmp_path / "a.tflite"
    with pytest.raises(DataError, match="calibration data"):
        dlopt.auto.to_int8(network(), path, np.zeros((0, 8, 8, 3), "float32"))
    with pytest.raises(FileNotFoundError, match="There is no file"):
        dlopt.auto.to_int8(tmp_path / "none.keras", path, np.zeros((1, 8, 8, 3)))
    (tmp_path / "bad.keras").write_bytes(b"no model")
    with pytest.raises(FormatError, match=r"is no model that Keras .* can read"):
        dlopt.auto.to_int8(tmp_path / "bad.keras", path, np.zeros((1, 8, 8, 3)))
    assert not path.exists()


def test_code_in_a_file_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((4,)), L.Lambda(lambda x: 2 * x)])
    model.save(tmp_path / "l.keras")
    with pytest.raises(FormatError, match="can read"):
        dlopt.interop.load(tmp_path / "l.keras")


@pytest.mark.skipif(not TINY.is_dir(), reason="KERAS_DLOPT_DATA has no mlperf_tiny")
def test_person_detection_in_one_call(tmp_path):
    x = np.random.default_rng(0).random((64, 96, 96, 3)).astype("float32")
    made = dlopt.auto.to_int8(TINY / "mobilenet_person_96.h5", tmp_path / "a.tflite", x)
    assert made.export.verified
    assert made.parameters["given"] == 221_794
    assert made.parameters["without dead channels"] == 34_722
    assert made.export.size <= 82_000


OPTIONS = {
    "target": ({"target": "tflm"}, np.int8, "tflm"),
    "bits": ({"activation_bits": 16, "io": "int16"}, np.int16, "xnnpack"),
    "parts": ({"keep_float": dlopt.at("next/kernel")}, np.float32, "xnnpack"),
    "storage": (
        {"storage": "int4", "weights": dlopt.FakeQuant(bits=4)},
        np.float32,
        "xnnpack",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_the_quantization_and_the_file_are_passed_on(name, images, tmp_path):
    options, dtype, target = OPTIONS[name]
    made = dlopt.auto.to_int8(network(), tmp_path / "a.tflite", images, **options)
    given = interpreter(made.export.path, threads=1).get_input_details()[0]
    assert made.export.verified
    assert (given["dtype"], made.export.target) == (dtype, target)
    in_float = [island for island in made.export.islands if "next" in island]
    assert bool(in_float) == (name == "parts")
    assert any("4 bits" in r for r in made.export.remarks) == (name == "storage")


def test_arrays_in_order_are_no_trap(images, tmp_path):
    dark_first = np.concatenate([images / 10, images])
    path = tmp_path / "m.tflite"
    dlopt.auto.to_int8(network(), path, dark_first, io="int8", limit=64)
    (scale, _) = interpreter(path).get_input_details()[0]["quantization"]
    assert scale == pytest.approx(1, abs=0.05)
