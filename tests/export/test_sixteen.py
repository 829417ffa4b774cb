"""Activations of 16 bits beside int8 weights."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import FakeQuantActivation, Recipe, at, export
from keras_dlopt.errors import ConfigError
from keras_dlopt.export import operators
from keras_dlopt.export.contents import read
from keras_dlopt.export.layerwise import allowed
from keras_dlopt.post_training import quantize

pytest.importorskip("ai_edge_litert")
X = np.random.default_rng(0).normal(size=(48, 12, 12, 3)).astype("float32")


def net(*end):
    """Convolutions, an addition, poolings and dense layers."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(X.shape[1:])
    x = layers.Conv2D(8, 3, activation="relu", name="c")(inputs)
    y = layers.Conv2D(8, 3, padding="same", name="r")(x)
    x = layers.ReLU(name="relu")(layers.Add(name="add")([x, y]))
    x = layers.DepthwiseConv2D(3, name="dw")(layers.MaxPooling2D()(x))
    x = layers.Conv2DTranspose(4, 2, name="t")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(10, name="d")(x)
    for layer in end:
        x = layer(x)
    return keras.Model(inputs, x, name="net")


def types(path):
    contents = read(path)
    return {
        op.name: [
            contents.tensors[i].dtype for i in (*op.inputs, *op.outputs) if i >= 0
        ]
        for op in contents.operators
    }


def test_the_file_computes_what_was_simulated(tmp_path):
    model = net()
    small = quantize(model, X, activation_bits=16)
    report = export.litert(small, tmp_path / "a.tflite", data=X)
    assert report.islands == ()
    assert report.layers.levels <= 1
    # The kernels are the same everywhere: a level an operation, and one at the end.
    assert report.noise.levels <= report.noise.allowed == 1 + report.layers.operations
    found = types(report.path)
    # Inputs, int8 weights, biases of 64 bits.
    assert found["CONV_2D"] == ["INT16", "INT8", "INT64", "INT16"]
    assert found["FULLY_CONNECTED"] == ["INT16", "INT8", "INT16"]
    assert {"ADD", "MEAN", "MAX_POOL_2D", "TRANSPOSE_CONV"} <= found.keys()
    got, wanted = export.Predictor(report.path)(X), small.predict(X, verbose=0)
    assert np.abs(got - wanted).max() < 3e-4 * np.abs(wanted).max()
    # Only the weights are rounded in earnest: 8 bits are much farther off.
    weights = dlopt.post_training.dynamic_range(model).predict(X, verbose=0)
    narrow = quantize(model, X).predict(X, verbose=0)
    assert np.abs(wanted - weights).max() < 0.1 * np.abs(narrow - weights).max()


@pytest.mark.parametrize("end", ["softmax", "sigmoid", "tanh"])
def test_the_ends_of_tables_are_fixed(end, tmp_path):
    small = quantize(net(layers.Activation(end, name="end")), X, activation_bits=16)
    report = export.litert(small, tmp_path / "a.tflite", io="int16", data=X)
    assert report.io == "int16"
    contents = read(report.path)
    # No rounding from one grid to another one stands behind it.
    assert contents.operators[-1].name in ("SOFTMAX", "LOGISTIC", "TANH")
    (made,) = contents.outputs
    assert contents.tensors[made].scales.tolist() == [1 / 32768]
    got = export.Predictor(report.path)(X)
    np.testing.assert_allclose(got, small.predict(X, verbose=0), atol=1e-3)


def test_tables_that_are_coarser_than_sixteen_bits():
    # Their own results on equal inputs, measured; all others are within a level.
    assert [allowed(n, 16) for n in ("SOFTMAX", "TANH", "LOGISTIC")] == [32, 2, 1]
    assert [allowed(n) for n in ("SOFTMAX", "TANH", "CONV_2D")] == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:'net' cannot run in int8 alone")
def test_an_operator_without_wide_kernels_stays_in_float(tmp_path):
    small = quantize(net(layers.ELU(name="elu")), X, activation_bits=16)
    report = export.litert(small, tmp_path / "a.tflite", data=X)
    assert report.islands == ("ELU from 'elu': LiteRT has it in float only",)
    assert operators.runs_in_int("ELU")
    assert not operators.runs_in_int("ELU", 16)


def test_a_channel_with_next_to_no_weight_keeps_a_bias_of_forty_bits(tmp_path):
    model = net()
    conv = model.get_layer("c")
    kernel = conv.kernel.numpy()
    kernel[..., 3] *= 1e-12
    conv.kernel.assign(kernel)
    conv.bias.assign(np.linspace(0.5, 1.5, 8))
    small = quantize(model, X, activation_bits=16)
    report = export.litert(small, tmp_path / "a.tflite", data=X)
    biases = [t.data for t in read(report.path).tensors if t.dtype == "INT64"]
    assert 2**36 < max(np.abs(b).max() for b in biases) <= 1.001 * 2**37
    got, wanted = export.Predictor(report.path)(X), small.predict(X, verbose=0)
    assert np.abs(got - wanted).max() < 3e-4 * np.abs(wanted).max()


def test_microcontrollers_run_it(tmp_path):
    pytest.importorskip("tflite_micro")
    model = keras.Sequential([keras.Input((8,)), layers.Dense(6), layers.Dense(3)])
    x = np.random.default_rng(1).normal(size=(32, 8)).astype("float32")
    small = quantize(model, x, activation_bits=16)
    report = export.litert(small, tmp_path / "a.tflite", target="tflm", data=x)
    assert report.io == "int16"
    assert "of 96 output codes equal" in report.remarks[0]


def trained(first, last):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="d")])
    entries = [(at("d/input"), first), (at("d/output"), last)]
    small = dlopt.transform(model, Recipe(entries))
    small(np.ones((2, 4), "float32"), training=True)
    return small


def test_what_cannot_be_is_told(tmp_path):
    wide = FakeQuantActivation(bits=16, symmetric=True)
    path = tmp_path / "a.tflite"
    for small, text, options in (
        (trained(wide, FakeQuantActivation()), "'d/output' has 8 bits and 'd/in", {}),
        (trained(FakeQuantActivation(bits=16), wide), "know no zero point, and ", {}),
        (trained(wide, wide), "are int16, and so are its ends", {"io": "int8"}),
        (trained(*[FakeQuantActivation()] * 2), "Pass io='int8' or", {"io": "int16"}),
        (trained(*[FakeQuantActivation(bits=7)] * 2), "8 or 16 bits here", {}),
    ):
        with pytest.raises(ConfigError, match=text):
            export.litert(small, path, **options)
    assert list(tmp_path.iterdir()) == []
