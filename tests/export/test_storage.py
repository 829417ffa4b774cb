"""Weights in four bits, in half floats, and for ranges at run time."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import FakeQuant, export
from keras_dlopt.errors import ConfigError
from keras_dlopt.export.contents import read
from keras_dlopt.export.packing import nibbles, unpacked
from keras_dlopt.post_training import dynamic_range, quantize

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
X = np.random.default_rng(0).normal(size=(32, 12, 12, 3)).astype("float32")


def net():
    keras.utils.set_random_seed(0)
    parts = [
        keras.Input(X.shape[1:]),
        layers.Conv2D(15, 3, activation="relu", name="c"),
        layers.DepthwiseConv2D(3, name="dw"),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(65, activation="relu", name="e"),
        layers.Dense(9, name="d"),
    ]
    return keras.Sequential(parts, name="net")


def without_xnnpack(path):
    """The outputs of LiteRT's own kernels; its reference lacks some for four bits."""
    kind = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    run = interpreter.Interpreter(str(path), experimental_op_resolver_type=kind)
    made = []
    run.allocate_tensors()
    (given,), (end,) = run.get_input_details(), run.get_output_details()
    for x in X:
        run.set_tensor(given["index"], x[None])
        run.invoke()
        made.append(run.get_tensor(end["index"])[0])
    return np.array(made)


def test_four_bits_compute_what_eight_do(tmp_path):
    small = quantize(net(), X, weights=FakeQuant(bits=4))
    wide = export.litert(small, tmp_path / "8.tflite", data=X)
    report = export.litert(small, tmp_path / "4.tflite", storage="int4", data=X)
    assert report.remarks == ("4 kernels in 4 bits, 0 in 8",)
    assert report.codes == 3 * 9 * 15 + 9 * 15 + 15 * 65 + 65 * 9
    # Half a byte a weight, but for the flatbuffer's own padding.
    assert abs(wide.size - report.size - report.codes / 2) < 80
    kinds = [t.dtype for t in read(report.path).tensors]
    assert kinds.count("INT4") == 4
    np.testing.assert_array_equal(
        without_xnnpack(report.path), without_xnnpack(wide.path)
    )
    # XNNPACK has no four-bit kernels, and LiteRT's own round halves otherwise.
    assert report.agreement.largest_lsb <= 2


def test_kernels_that_do_not_fit_stay_in_eight_bits(tmp_path):
    entries = [
        (dlopt.at("c/kernel"), FakeQuant(bits=8)),
        (dlopt.named("kernel"), FakeQuant(bits=4)),
    ]
    whole = dlopt.int8.int8_recipe(net())
    acts = [e for e in whole.entries if e[1].kind == "activation"]
    small = quantize(net(), X, recipe=dlopt.Recipe(acts + entries))
    report = export.litert(small, tmp_path / "4.tflite", storage="int4", data=X)
    assert report.remarks == ("3 kernels in 4 bits, 1 in 8",)
    assert report.agreement.largest_lsb <= 1


def test_four_bits_beside_float_activations(tmp_path):
    small = dynamic_range(net(), weights=FakeQuant(bits=4))
    report = export.litert(small, tmp_path / "4.tflite", storage="int4", data=X)
    assert report.codes > 0
    wanted = small.predict(X, verbose=0)
    for got in (without_xnnpack(report.path), export.Predictor(report.path)(X)):
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_half_floats_are_the_rounded_weights(tmp_path):
    model = net()
    whole = export.litert(model, tmp_path / "32.tflite")
    report = export.litert(model, tmp_path / "16.tflite", storage="float16", data=X)
    assert report.remarks == ("4 weights in float16",)
    assert 0.5 < report.size / whole.size < 0.65
    # All but biases, of fewer than 64 values here.
    rounded = net()
    for v in rounded.weights:
        if v.name != "bias" or v.shape[0] >= 64:
            v.assign(v.numpy().astype("float16").astype("float32"))
    wanted = rounded.predict(X, verbose=0)
    got = export.Predictor(report.path)(X)
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())
    far = np.abs(model.predict(X, verbose=0) - wanted).max() / np.abs(wanted).max()
    assert far > 1e-4


def test_ranges_at_run_time_round_what_a_layer_takes(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), layers.Dense(8, use_bias=False)])
    x = np.random.default_rng(1).normal(size=(50, 64)).astype("float32")
    small = dynamic_range(model)
    report = export.litert(small, tmp_path / "d.tflite", storage="dynamic", data=x)
    assert [op.name for op in read(report.path).operators] == ["FULLY_CONNECTED"]
    kernel = dlopt.finalize(small).layers[0].kernel.numpy()
    got = export.Predictor(report.path)(x)
    apart = np.abs(got - x @ kernel)
    # A step of each example's own range, that holds 0; half of it is lost at most.
    low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
    bound = (high - low)[:, None] / 255 * np.abs(kernel).sum(0)
    assert (apart <= 0.5 * bound + 1e-5).all()
    assert apart.max() > 0.01 * bound.max()


def test_what_cannot_be_stored_so_is_told(tmp_path):
    model, path = net(), tmp_path / "a.tflite"
    large = net()
    large.get_layer("d").kernel.assign(large.get_layer("d").kernel + 1e5)
    for storage, one, text in (
        (
            "int4",
            quantize(model, X),
            "none of this model's fits.*FakeQuant\\(bits=4\\)",
        ),
        ("float16", quantize(model, X), "for weights in float32, and this model has"),
        ("float16", large, "holds values up to 65504, and a weight of FULLY_CONNECTED"),
        ("dynamic", model, "Start from post_training.dynamic_range"),
        ("int5", model, "storage must be one of"),
    ):
        with pytest.raises(ConfigError, match=text):
            export.litert(one, path, storage=storage)
    assert list(tmp_path.iterdir()) == []


def test_codes_are_packed_with_the_first_in_the_lower_half():
    codes = np.arange(-8, 7, dtype="int8").reshape(3, 5)
    packed = nibbles(codes)
    assert packed[:2].tolist() == [0x98, 0xBA]
    assert packed.size == 8
    np.testing.assert_array_equal(unpacked(packed, codes.shape), codes)
