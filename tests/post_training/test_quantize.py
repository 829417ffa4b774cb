"""Post-training quantization: what it returns is close, exact on file, exportable."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import export, post_training
from keras_dlopt.errors import ConfigError, DataError
from keras_dlopt.post_training.data import Batches
from keras_dlopt.transforms import PACT, FakeQuant, LSQActivation, LSQPlusActivation


def net(shape=(8, 8, 2), classes=4):
    inputs = keras.Input(shape, name="image")
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.ReLU(6.0, name="stem_relu")(x)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="dw")(x)
    y = layers.BatchNormalization(name="dw_bn")(y)
    y = layers.ReLU(name="dw_relu")(y)
    y = layers.Conv2D(6, 1, name="project")(y)
    x = layers.Add(name="add")([x, y])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(12, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name="net")


@pytest.fixture(scope="module")
def trained():
    """A net whose channels differ widely, its statistics those of its data."""
    keras.utils.set_random_seed(0)
    model = net()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(128, 8, 8, 2)).astype("float32")
    for name in ("stem_bn", "dw_bn"):
        layer = model.get_layer(name)
        layer.gamma.assign(np.exp(rng.normal(size=6)))
        layer.beta.assign(rng.normal(size=6))
        layer.momentum = 0.5
    for _ in range(10):
        model(x, training=True)
    return model, x


def distance(a, b):
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    return float(np.square(a - b).mean() / np.square(b - b.mean(0)).mean())


@pytest.mark.parametrize("observer", ["min_max", "moving_average", "mse", "kl"])
def test_static_int8_is_close_and_leaves_the_model(trained, observer):
    model, x = trained
    before = [v.numpy() for v in model.weights]
    small = post_training.quantize(model, x, observer=observer)
    # A random net whose average over the image hides most of the signal.
    assert distance(small(x), model(x)) < 0.05
    for a, b in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(a, b.numpy())
    low = [
        float(s.state["low"])
        for g in small.groups
        if g.transform.kind != "weight"
        for s in g.slots
    ]
    assert all(v <= 0 for v in low)


def test_the_file_of_litert_holds_the_calibrated_scales(trained, tmp_path):
    model, x = trained
    small = post_training.quantize(model, x, correct_bias=True)
    report = export.litert(small, tmp_path / "net.tflite", io="int8", data=x)
    assert report.verified
    assert report.codes == 6 * 18 + 6 * 9 + 36 + 72 + 48
    assert report.agreement.top1_clear == 1.0
    assert report.agreement.largest_lsb <= 2


def test_compressed_files_and_finalized_models_are_exact(trained, tmp_path):
    model, x = trained
    small = post_training.quantize(model, x, weights=FakeQuant(bits=4, observer="mse"))
    plain = dlopt.finalize(small)
    ledger = dlopt.save_compressed(small, tmp_path / "net.dlopt")
    assert {"grid", "sparse grid"} & {row.method for row in ledger.rows}
    again = dlopt.load_compressed(tmp_path / "net.dlopt")
    np.testing.assert_array_equal(plain(x), again(x))


def test_dynamic_range_quantizes_kernels_only(trained):
    model, x = trained
    small = post_training.dynamic_range(model)
    assert {g.transform.kind for g in small.groups} == {"weight"}
    assert distance(small(x), model(x)) < 0.01
    with pytest.raises(ConfigError, match="no kernels and no embeddings"):
        post_training.dynamic_range(
            keras.Sequential([keras.Input((3,)), layers.ReLU()])
        )


def test_a_recipe_says_what_goes_where(trained):
    model, x = trained
    recipe = dlopt.Recipe([(dlopt.at("stem/kernel"), FakeQuant(bits=2))])
    small = post_training.quantize(model, x, recipe=recipe)
    assert [g.transform.bits for g in small.groups] == [2]
    with pytest.raises(ConfigError, match="leave out weights, activation_bits and"):
        post_training.quantize(model, x, recipe=recipe, weights=FakeQuant())
    with pytest.raises(ConfigError, match="leave out weights, activation_bits and"):
        post_training.quantize(model, x, recipe=recipe, activation_bits=4)


def test_other_widths_are_simulated_and_refused_by_litert(trained, tmp_path):
    model, x = trained
    for bits in (3, 12):
        small = post_training.quantize(model, x, activation_bits=bits)
        with pytest.raises(ConfigError, match=f"activations of 8 or 16 .*has {bits}"):
            export.litert(small, tmp_path / "net.tflite")
    four = post_training.quantize(model, x, weights=FakeQuant(bits=4))
    report = export.litert(four, tmp_path / "net.tflite", full_integer=True)
    assert report.codes > 0


def test_calibration_starts_learned_quantizers():
    model = keras.Sequential([keras.Input((3,)), layers.ReLU(name="r")])
    x = np.array([[0.0, 1.0, 3.0]] * 4, "float32")

    def state(transform):
        recipe = dlopt.Recipe([(dlopt.at("r/output"), transform)])
        small = dlopt.transform(model, recipe)
        post_training.calibrate(small, x, observer="min_max")
        assert np.isfinite(np.asarray(small(x))).all()
        return {k: float(v) for k, v in small.groups[0].slots[0].state.items()}

    lsq = state(LSQActivation(bits=2))
    assert lsq["step"] == pytest.approx(2 * (4 / 3) / 3**0.5)
    assert lsq["on"] == 1
    plus = state(LSQPlusActivation(bits=2))
    assert (plus["step"], plus["offset"]) == (pytest.approx(1.0), 0.0)
    assert state(PACT(bits=2))["level"] == 3.0
    ranged = dlopt.FakeQuantActivation(symmetric=True, begin=3, freeze=5)
    found = state(ranged)
    assert (found["low"], found["high"], found["on"], found["frozen"]) == (-3, 3, 1, 1)
    fixed = state(dlopt.FakeQuantActivation(range=(0.0, 7.0)))
    assert fixed["high"] == 7.0


def test_moving_average_and_percentile_of_the_calibration_data():
    model = keras.Sequential([keras.Input((1,)), layers.ReLU(name="r")])
    recipe = dlopt.Recipe([(dlopt.at("r/output"), dlopt.FakeQuantActivation())])
    small = dlopt.transform(model, recipe)
    high = small.groups[0].slots[0].state["high"]
    x = np.array([[1.0], [1.0], [3.0], [3.0]], "float32")
    post_training.calibrate(
        small, x, observer=dlopt.transforms.MovingAverage(0.75), batch_size=2
    )
    assert float(high) == pytest.approx(0.75 * 1 + 0.25 * 3)
    x = np.linspace(0, 1, 1001, dtype="float32")[:, None]
    post_training.calibrate(
        small, x, observer=dlopt.transforms.Percentile(90.0), batch_size=500
    )
    assert float(high) == pytest.approx(0.9, abs=2e-3)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (np.zeros((0, 8, 8, 2), "float32"), "calibration data are empty"),
        ([], "calibration data are empty"),
        (np.zeros((4, 8, 8, 3), "float32"), r"takes inputs.*\(None, 8, 8, 2\)"),
        (np.full((4, 8, 8, 2), np.nan, "float32"), "not finite"),
        (3, "an iterable of batches"),
        ((np.ones((4, 8, 8, 2)), np.ones(4)), "inputs, without labels"),
        (tf.data.Dataset.from_tensors(np.ones((4, 8, 8, 2))).repeat(), "never end"),
    ],
)
def test_bad_calibration_data(trained, data, text):
    with pytest.raises(DataError, match=text):
        post_training.quantize(trained[0], data)


def test_a_generator_is_read_once(trained):
    model, x = trained
    small = post_training.quantize(model, (b for b in (x[:8], x[8:])))
    whole = post_training.quantize(model, x)
    np.testing.assert_array_equal(small(x), whole(x))


def test_arrays_of_several_inputs_are_of_one_length():
    a, b = keras.Input((2,)), keras.Input((3,))
    x = layers.Concatenate()([layers.Dense(2)(a), layers.Dense(2)(b)])
    model = keras.Model([a, b], x)
    with pytest.raises(DataError, match="differ in length"):
        post_training.quantize(model, [np.zeros((2, 2)), np.zeros((3, 3))])
    data = [np.ones((4, 2), "float32"), np.ones((4, 3), "float32")]
    small = post_training.quantize(model, data)
    assert np.isfinite(np.asarray(small(data))).all()


def test_bad_batch_size_and_models(trained):
    model, x = trained
    with pytest.raises(DataError, match="batch_size must be at least 1"):
        post_training.quantize(model, x, batch_size=0)
    for method, text in (
        (post_training.calibrate, "sets the ranges of a TransformedModel"),
        (post_training.correct_bias, "compares a TransformedModel"),
        (post_training.adaround, "rounds the kernels of a TransformedModel"),
    ):
        with pytest.raises(ConfigError, match=text):
            method(model, x)


def test_transforms_that_cannot_be_set_from_data_are_named():
    class Halved(dlopt.Transform):
        kind = "activation"

        def apply(self, weight, state, context):
            return weight / 2

    model = keras.Sequential([keras.Input((3,)), layers.ReLU(name="r")])
    recipe = dlopt.Recipe([(dlopt.at("r/output"), Halved())])
    small = dlopt.transform(model, recipe)
    with pytest.raises(ConfigError, match="does not know how to set Halved"):
        post_training.calibrate(small, np.ones((2, 3), "float32"))


def test_batches_may_come_with_labels():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    batches = [
        (np.ones((3, 2), "float32"), np.zeros(3)),
        (np.ones((1, 2)), np.zeros(1)),
    ]
    small = post_training.quantize(model, batches)
    x = np.ones((1, 2), "float32")
    np.testing.assert_allclose(small(x), model(x), atol=0.02)


@pytest.mark.parametrize("end", ["softmax", "sigmoid"])
def test_a_fused_head_is_split_off_for_litert(end, tmp_path):
    dense = keras.layers.Dense(3, activation=end, name="head")
    net = keras.Sequential([keras.Input((6,)), dense])
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    small = post_training.quantize(net, x)
    assert type(dlopt.finalize(small)) is keras.Sequential
    report = dlopt.export.litert(small, tmp_path / "head.tflite", data=x)
    assert report.quantized
    assert report.agreement.largest_lsb <= 1
    assert [layer.name for layer in net.layers] == ["head"]


class Own(keras.Model):
    """A Functional model of a class of its own."""


def test_a_model_of_its_own_class_is_not_rebuilt():
    x = keras.Input((6,))
    net = Own(x, keras.layers.Dense(3, activation="softmax", name="head")(x))
    with pytest.warns(UserWarning, match=r"split_activations\(model\) makes"):
        small = post_training.quantize(net, np.ones((4, 6), "float32"))
    assert [layer.name for layer in small.model.layers[1:]] == ["head"]


class Counted(layers.Layer):
    """Doubles what it is given, and counts how often."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return 2 * x


@pytest.mark.parametrize("shared", [False, True])
def test_one_batch_is_run_once_unless_a_place_is_passed_twice(shared):
    inputs, relu = keras.Input((400,)), layers.ReLU(name="r")
    x = relu(Counted(name="counted")(inputs))
    outputs = [x, relu(-3 * inputs)] if shared else x
    model = keras.Model(inputs, outputs)
    recipe = dlopt.Recipe([(dlopt.at("r/output"), dlopt.FakeQuantActivation())])
    small, x = dlopt.transform(model, recipe), np.random.default_rng(0)
    x = x.normal(size=(50, 400)).astype("float32")
    counted = small.model.get_layer("counted")
    counted.calls = 0
    observer = dlopt.transforms.Percentile(90.0)
    post_training.calibrate(small, x, observer=observer)
    assert counted.calls == (2 if shared else 1)
    made = np.maximum([2 * x, -3 * x] if shared else 2 * x, 0)
    # The histogram's bins are a 2048th of the range.
    expected = np.percentile(made, 90)
    found = float(small.groups[0].slots[0].state["high"])
    np.testing.assert_allclose(found, expected, atol=2 * made.max() / 2048)


def test_of_arrays_in_order_examples_are_drawn():
    inputs = keras.Input((3,), name="x")
    model = keras.Model({"x": inputs}, layers.Dense(2)(inputs))
    rows = {"x": np.repeat(np.arange(4.0), 250)[:, None] * np.ones(3)}
    batches = Batches(model, rows, batch_size=64, limit=100)
    kept = np.concatenate([batch["x"] for batch in batches])
    counts = np.unique(kept[:, 0], return_counts=True)[1]
    assert batches.examples == len(kept) == 100
    assert counts.size == 4
    assert counts.min() > 10
    assert np.array_equal(kept, np.sort(kept, axis=0))
    again = Batches(model, rows, limit=100)
    assert np.array_equal(np.concatenate([b["x"] for b in again]), kept)
    assert Batches(model, rows, limit=1000).examples == 1000
