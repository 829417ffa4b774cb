"""The own writer: given codes, scales and ranges, and float where one is missing."""

import warnings

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import FakeQuant, FakeQuantActivation, Recipe, at, export, named
from keras_dlopt.errors import ExportError
from keras_dlopt.export.contents import read
from keras_dlopt.export.flat import Flat, schema
from keras_dlopt.export.twin import Range
from keras_dlopt.export.writer import to_int8


def net():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 6, 2), name="x"),
            layers.Conv2D(4, 3, name="c"),
            layers.ReLU(name="r"),
            layers.Conv2D(4, 3, name="e"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="d"),
        ]
    )


def data(seed=0, shape=(16, 6, 6, 2)):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def trained(model, entries):
    small = dlopt.transform(model, Recipe(entries))
    small(data(), training=True)
    small.update_transforms(0)
    return small


def quantizers(*paths):
    return (at(*paths), FakeQuantActivation())


ALL = quantizers("c/input", "r/output", "e/output", "d/output")


@pytest.mark.parametrize(
    "weights",
    [
        FakeQuant(bits=4),
        FakeQuant(bits=8, per_channel=False),
        FakeQuant(bits=6),
        dlopt.Prune(0.5) >> FakeQuant(bits=3),
    ],
    ids=repr,
)
def test_any_symmetric_grid_of_kernels(tmp_path, weights):
    small = trained(net(), [ALL, (named("kernel"), weights)])
    report = export.litert(small, tmp_path / "m.tflite", data=data(), full_integer=True)
    assert report.codes == 4 * 18 + 4 * 36 + 3 * 16
    assert report.islands == ()
    assert report.agreement.largest_lsb <= 1
    # The codes, by another reading of the model and of the file.
    kernel = dlopt.finalize(small).get_layer("d").kernel.numpy()
    (found,) = (t for t in read(report.path).tensors if t.shape == (3, 16))
    np.testing.assert_allclose(
        found.data * found.scales.reshape(-1, 1), kernel.T, rtol=1e-6
    )


def test_what_has_no_quantizer_stays_in_float_and_computes_what_was_trained(tmp_path):
    model = net()
    small = trained(
        model,
        [quantizers("r/output", "e/output"), (at("e/kernel"), FakeQuant(bits=8))],
    )
    report = export.litert(small, tmp_path / "m.tflite", data=data())
    assert report.codes == 4 * 36
    assert [text.split(":")[0] for text in report.islands] == [
        "CONV_2D from 'c'",
        "FULLY_CONNECTED from 'd'",
    ]
    np.testing.assert_allclose(
        export.run_litert(report.path, data(1)),
        small.predict(data(1), verbose=0),
        atol=2e-5,
    )


def test_weights_alone_are_stored_in_int8_and_computed_in_float(tmp_path):
    small = trained(net(), [(named("kernel"), FakeQuant(bits=8))])
    plain = export.litert(dlopt.finalize(small), tmp_path / "float.tflite")
    report = export.litert(small, tmp_path / "m.tflite", data=data())
    assert not report.quantized
    assert report.codes == 4 * 18 + 4 * 36 + 3 * 16
    assert report.size < plain.size
    np.testing.assert_allclose(
        export.run_litert(report.path, data(1)), small(data(1)), rtol=1e-5, atol=1e-6
    )


def test_two_ranges_of_one_tensor_are_rounded_in_turn(tmp_path):
    more = (at("flat/output"), FakeQuantActivation(range=(-0.5, 0.5)))
    small = trained(net(), [ALL, more, (named("kernel"), FakeQuant(bits=8))])
    report = export.litert(small, tmp_path / "m.tflite", data=data(), full_integer=True)
    assert report.ranges == 5
    assert report.agreement.largest_lsb <= 1


def test_what_goes_into_a_concatenation_has_ranges_of_its_own(tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 2))
    a = layers.Conv2D(4, 3, name="c")(x)
    b = layers.Conv2D(4, 3, name="e")(x)
    y = layers.Flatten(name="f")(layers.Concatenate(name="cat")([a, b]))
    model = keras.Model(x, layers.Dense(2, name="d")(y))
    more = (at("c/output", "f/output"), FakeQuantActivation(range=(-9, 9)))
    rest = quantizers("c/input", "e/input", "cat/output", "d/output")
    small = trained(model, [more, rest, (named("kernel"), FakeQuant(bits=8))])
    report = export.litert(small, tmp_path / "m.tflite", data=data(), full_integer=True)
    assert report.ranges == 6
    # The branches are rounded to their own range, and to the joined one.
    assert report.agreement.largest_lsb <= 2


def test_names_stay_on_request_and_outputs_are_the_same(tmp_path):
    small = trained(net(), [ALL, (named("kernel"), FakeQuant(bits=8))])
    lean = export.litert(small, tmp_path / "lean.tflite")
    full = export.litert(small, tmp_path / "full.tflite", lean=False)
    assert lean.size < 0.8 * full.size
    assert {t.name for t in read(lean.path).tensors} == {""}
    assert any("sequential" in t.name for t in read(full.path).tensors)
    np.testing.assert_array_equal(
        export.run_litert(lean.path, data(2)), export.run_litert(full.path, data(2))
    )
    assert export.Predictor(lean.path).inputs[0].name == "x"


def test_writing_changes_nothing_and_copies_are_apart(tmp_path):
    path = tmp_path / "m.tflite"
    export.litert(net(), path, lean=False)
    file = Flat(path)
    other = file.copy()
    other.outputs.append(other.ops[0].outputs[0])
    other.add(0, "int8", values=np.ones(3, "int8"))
    written = []
    for lean in (True, False, True, False):
        file.write(path, lean=lean)
        written.append(path.read_bytes())
    assert written[:2] == written[2:]
    assert len(written[0]) < len(written[1])
    assert len(Flat(path).outputs) == 1
    assert export.run_litert(path, data()).shape == (16, 3)
    other.write(path)
    assert len(Flat(path).outputs) == 2


@pytest.mark.parametrize("kind", ["einsum", "attention"])
def test_products_into_which_the_converter_fuses_a_conversion(tmp_path, kind):
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 8))
    if kind == "einsum":
        y = layers.EinsumDense("abc,cd->abd", output_shape=(None, 5))(x)
    else:
        y = layers.MultiHeadAttention(2, 4)(x, x)
    model, given = keras.Model(x, y), data(shape=(32, 6, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # attention is simulated in parts
        small = dlopt.post_training.quantize(model, given)
    report = export.litert(small, tmp_path / "m.tflite", data=given)
    assert report.codes == sum(
        v.numpy().size for v in model.weights if v.name == "kernel"
    )
    assert report.agreement.largest_lsb <= 2


def test_a_mean_in_float_is_not_rounded_to_the_range_of_what_it_takes(tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 8))
    y = layers.LayerNormalization(axis=1, name="n")(layers.Dense(8)(x))
    model, given = keras.Model(x, layers.Dense(3)(y)), data(shape=(32, 6, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is computed in float
        small = dlopt.post_training.quantize(model, given)
    report = export.litert(small, tmp_path / "m.tflite", data=given)
    assert all("from 'n'" in island for island in report.islands)
    assert "MEAN" in {island.split()[0] for island in report.islands}
    assert report.agreement.largest_lsb <= 1


def test_an_open_batch_is_full_integer_too(tmp_path):
    small = trained(net(), [ALL, (named("kernel"), FakeQuant(bits=8))])
    report = export.litert(
        small,
        tmp_path / "m.tflite",
        data=data(),
        batch_size=None,
        full_integer=True,
        io="int8",
    )
    assert report.islands == ()
    assert report.agreement.largest_lsb <= 1


def test_one_constant_on_two_grids_of_one_step(tmp_path):
    """Ranges of one width, shifted: the value that pads has two codes."""

    @tf.function(input_signature=[tf.TensorSpec((1, 4, 4, 2), "float32")])
    def function(x):
        ends = ((-1.0, 1.55), (0.0, 2.55))
        rounded = tf.quantization.fake_quant_with_min_max_vars
        pads = [[0, 0], [1, 1], [0, 0], [0, 0]]
        return [tf.pad(rounded(x, *e), pads, constant_values=0.5) for e in ends]

    concrete = function.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], None)
    path = tmp_path / "m.tflite"
    path.write_bytes(converter.convert())
    file = Flat(path)
    ranges = [Range("a", np.float32(-1), np.float32(1.55))]
    ranges.append(Range("b", np.float32(0), np.float32(2.55)))
    to_int8(file, [], ranges)
    file.write(path)
    x = np.random.default_rng(0).random((1, 4, 4, 2)).astype("float32")
    for found in export.run_litert(path, x):
        np.testing.assert_allclose(found[:, 0], 0.5, atol=1e-6)
        np.testing.assert_allclose(found[:, 1:-1], x, atol=0.0051)


def test_constants_outside_the_file_are_not_lost(tmp_path):
    path = tmp_path / "m.tflite"
    export.litert(keras.Sequential([keras.Input((2,)), layers.Dense(3)]), path)
    found = schema()
    model = found.ModelT.InitFromObj(found.Model.GetRootAs(path.read_bytes(), 0))
    model.buffers[-1].offset = 4096
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    with pytest.raises(ExportError, match="more than 2 GB"):
        Flat(path)


@pytest.mark.slow
def test_layers_of_which_next_to_nothing_is_left_are_written(tmp_path):
    """All channels add less than half a level: their own grids are too fine."""
    model = net()
    small = trained(model, [ALL, (named("kernel"), FakeQuant(bits=8))])
    tiny = small.model.get_layer("c").kernel
    tiny.assign(tiny * 1e-9)
    fixed = [(at("e/output"), FakeQuantActivation(range=(0, 1)))]
    small = trained(small.model, [*fixed, ALL, (named("kernel"), FakeQuant(bits=8))])
    report = export.litert(small, tmp_path / "m.tflite", data=data())
    assert report.codes == 4 * 18 + 4 * 36 + 3 * 16
    assert report.agreement.largest_lsb <= 1
