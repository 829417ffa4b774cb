"""Each int8 operation of a file is compared with what was simulated, on its own."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import FakeQuant, FakeQuantActivation, Recipe, at, export, named
from keras_dlopt.errors import ExportError
from keras_dlopt.export.flat import Flat
from keras_dlopt.export.layerwise import beside, compare
from keras_dlopt.export.runtime import LiteRT
from keras_dlopt.export.twin import Range
from keras_dlopt.export.writer import _Writer, to_int8

PATHS = ("c/input", "c/output", "e/output", "d/output")


def trained(paths=PATHS):
    keras.utils.set_random_seed(0)
    parts = [
        layers.Conv2D(4, 3, name="c"),
        layers.Conv2D(4, 3, name="e"),
        layers.Flatten(name="flat"),
        layers.Dense(3, bias_initializer="ones", name="d"),
    ]
    model = keras.Sequential([keras.Input((6, 6, 2), name="x"), *parts])
    entries = [
        (at(*paths), FakeQuantActivation()),
        (named("kernel"), FakeQuant(bits=8)),
    ]
    small = dlopt.transform(model, Recipe(entries))
    small(data(), training=True)
    return small


def data(shape=(16, 6, 6, 2), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def with_wrong_bias(monkeypatch, *, number, by):
    """The writer adds so many levels of the output to one bias of the second layer."""
    put = _Writer._put_kernel
    seen = []

    def wrong(self, op, taken, made):
        put(self, op, taken, made)
        seen.append(op)
        if len(seen) == number:
            unit = self.file.tensors[op.inputs[2]].quantization.scale
            bias = self.file.data(op.inputs[2]).copy()
            bias[1] += np.rint(by * made.scale / unit[1]).astype("int32")
            op.inputs[2] = self.file.add(op.inputs[2], "int32", values=bias, scale=unit)

    monkeypatch.setattr(_Writer, "_put_kernel", wrong)


@pytest.mark.parametrize("x", [None, data()], ids=["without data", "with data"])
@pytest.mark.parametrize("io", ["float", "int8"])
@pytest.mark.parametrize("batch", [1, 5, None])
def test_a_wrong_layer_is_found_and_named(tmp_path, monkeypatch, x, io, batch):
    small, options = trained(), {"data": x, "io": io, "batch_size": batch}
    right = export.litert(small, tmp_path / "m.tflite", **options)
    assert right.layers.operations == 4  # flattening is one
    assert right.layers.levels <= 1
    with_wrong_bias(monkeypatch, number=2, by=4)
    text = (
        r"more than 1 level off .*: CONV_2D from 'e' by [45]\. Leave their quantizers"
    )
    with pytest.raises(ExportError, match=text) as refusal:
        export.litert(small, tmp_path / "wrong.tflite", **options)
    assert "'c'" not in str(refusal.value)
    assert "'d'" not in str(refusal.value)  # it computes right on what is wrong
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]


def test_the_report_tells_the_worst_layer(tmp_path, monkeypatch):
    with_wrong_bias(monkeypatch, number=3, by=1)
    report = export.litert(trained(), tmp_path / "m.tflite", data=data())
    assert report.layers.levels == 1
    assert report.layers.worst == "FULLY_CONNECTED from 'd'"
    # One of three channels, one level off in each example.
    assert report.layers.share == pytest.approx(1 / 3, abs=0.05)
    assert report.layers.rounding == pytest.approx(1 / 3, abs=0.05)
    text = str(report)
    assert "4 int8 operations, each within 1 of what was simulated on 16" in text
    assert "most in FULLY_CONNECTED from 'd', where 3" in text


def two_sides(function, given, ranges):
    """A file of one operation, and its steps."""

    @tf.function(input_signature=[tf.TensorSpec((1, *given.shape[1:]), "float32")])
    def simulated(x):
        fake = tf.quantization.fake_quant_with_min_max_vars
        taken, made = ((float(r.low), float(r.high)) for r in ranges)
        return fake(function(fake(x, *taken)), *made)

    concrete = simulated.get_concrete_function()
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], None).convert()


def test_both_sides_take_the_same_codes_and_round_alike(tmp_path):
    """Against the operation in float64 on the codes that the input has."""
    ranges = [Range("x", np.float32(-2), np.float32(127 / 64))]
    ranges.append(Range("y", np.float32(-4), np.float32(127 / 32)))
    path = tmp_path / "m.tflite"
    x = data((1, 3, 4, 2))
    path.write_bytes(two_sides(lambda v: v * (1.7, -0.4), x, ranges))
    file = Flat(path)
    steps = to_int8(file, [], ranges).steps
    both, pairs = beside(file, steps)
    assert [pair.given for pair in pairs] == [True, False]
    both.write(path)
    _, made, given, _, trained_side = LiteRT(str(path), 1).run([x])
    step, zero = float(ranges[0].scale), ranges[0].zero_point
    codes = np.clip(np.rint(x / step) + zero, -128, 127)
    values, factors = (codes - zero) * step, np.array([1.7, -0.4])
    in_file = np.rint(factors / (1.7 / 127)) * (1.7 / 127)
    for found, factor in ((given, in_file), (trained_side, factors)):
        exact = values * factor / float(ranges[1].scale) + ranges[1].zero_point
        np.testing.assert_allclose(found, np.clip(exact, -128, 127), atol=0.501)
    assert np.abs(made.astype(int) - given).max() <= 1


def test_what_the_rounding_of_a_constant_costs_is_no_error_of_the_operation(tmp_path):
    """Its range is far wider than what the sum is cut to."""
    ranges = [Range("x", np.float32(-1), np.float32(127 / 128))]
    ranges.append(Range("y", np.float32(-0.128), np.float32(0.127)))
    path, x = tmp_path / "m.tflite", data((8, 3, 4, 2))
    path.write_bytes(two_sides(lambda v: tf.add(v, (30.0, 0.1)), x, ranges))
    file = Flat(path)
    steps = to_int8(file, [], ranges).steps
    found = compare(file, steps, trained().model, tmp_path / "both.tflite", x)
    assert found.levels <= 1
    assert found.rounding > 1


def test_inputs_of_whole_numbers_are_compared_without_data(tmp_path):
    keras.utils.set_random_seed(0)
    ids = keras.Input((4,), dtype="int32", name="ids")
    x = layers.Embedding(7, 6, name="table")(ids)
    model = keras.Model(ids, layers.Dense(3, name="d")(layers.Flatten()(x)))
    given = np.random.default_rng(0).integers(0, 7, (16, 4)).astype("int32")
    small = dlopt.post_training.quantize(model, given)
    report = export.litert(small, tmp_path / "m.tflite")
    assert report.layers.operations >= 1
    assert report.layers.examples == 16


def test_open_sizes_are_compared_on_data_or_an_example_alone(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 2))
    y = layers.Conv2D(4, 3, name="c")(inputs)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D(name="g")(y))
    small = dlopt.post_training.quantize(model, data())
    path = tmp_path / "m.tflite"
    assert export.litert(small, path).layers is None
    assert export.litert(small, path, example=data()).layers.operations == 2
    assert export.litert(small, path, data=data()).layers.levels <= 1


def test_a_float_file_and_weights_alone_have_no_int8_operations(tmp_path):
    model = trained().model
    assert export.litert(model, tmp_path / "m.tflite", data=data()).layers is None
    small = dlopt.transform(model, Recipe([(named("kernel"), FakeQuant(bits=8))]))
    assert export.litert(small, tmp_path / "m.tflite").layers is None


@pytest.mark.parametrize(
    "kind", ["pooling", "resizing", "softmax", "sigmoid", "hard_swish", "attention"]
)
def test_layers_that_round_in_their_own_way_are_within_a_level(tmp_path, kind):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 8))
    y = layers.Conv2D(8, 3, padding="same")(inputs)
    if kind == "pooling":
        y = layers.AveragePooling2D(3, 2, padding="same")(y)
    elif kind == "resizing":
        y = layers.UpSampling2D(2, interpolation="bilinear")(y)
    elif kind == "attention":
        y = layers.Reshape((36, 8))(y)
        y = layers.MultiHeadAttention(2, 4)(y, y)
    else:
        y = layers.Activation("hard_silu" if kind == "hard_swish" else kind)(y)
    model = keras.Model(inputs, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # attention is simulated in parts
        small = dlopt.post_training.quantize(model, data((32, 6, 6, 8)))
    report = export.litert(small, tmp_path / "m.tflite", data=data((32, 6, 6, 8)))
    assert report.layers.levels <= 1
    assert report.layers.operations >= 2
