"""Files are written, read back, and hold exactly what was trained."""

import os

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.datasets import load_digits

import keras_dlopt as dlopt
from keras_dlopt import export
from keras_dlopt.export.contents import read
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.int8 import int8_recipe, split_activations


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.images[..., None] / 16).astype("float32"), data.target


def train(model, digits, *, recipe=None, logits=True, epochs=2):
    x, y = digits
    small = dlopt.transform(model, recipe or int8_recipe(model))
    small.compile(
        keras.optimizers.Adam(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=logits),
    )
    small.fit(x, y, epochs=epochs, batch_size=64, verbose=0)
    return small


def residual_net():
    def conv(x, name, relu=True):
        x = layers.Conv2D(8, 3, padding="same", use_bias=False, name=name)(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x) if relu else x

    inputs = keras.Input((8, 8, 1), name="image")
    x = conv(inputs, "stem")
    y = conv(conv(x, "a"), "b", relu=False)
    x = layers.ReLU(name="relu")(layers.Add(name="add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="residual")


def same(agreement, lsb=2):
    assert agreement.top1_clear == 1.0
    assert agreement.top1 > 0.98
    # The kernels round once more than the float simulation where they add and where
    # they average; what is left of that at the output is at most two levels.
    assert agreement.largest_lsb <= lsb


@pytest.mark.slow
def test_residual_network_is_exact_with_float_and_int8_ends(digits, tmp_path, capfd):
    small = train(residual_net(), digits)
    # A negative scale turns the signs of a channel's codes when it is folded.
    gamma = small.model.get_layer("a_bn").gamma
    gamma.assign(gamma * np.resize([1.0, -1.0], 8))
    x, _ = digits
    small.predict(x[:64], verbose=0)
    path = tmp_path / "model.tflite"
    capfd.readouterr()
    report = export.litert(small, path, data=x[:400])
    assert report.quantized
    assert report.verified
    assert report.codes == 8 * 9 + 2 * 8 * 8 * 9 + 80
    assert report.ranges == 7  # input, 2 ReLUs, branch, sum, pool, logits
    assert report.size == path.stat().st_size
    same(report.agreement)

    whole = export.litert(small, str(path), io="int8", data=x[:400])
    same(whole.agreement)
    assert whole.size < report.size
    assert os.listdir(tmp_path) == ["model.tflite"]
    assert capfd.readouterr() == ("", "")

    # The codes, once more, without the package's own reading of them.
    (kernel,) = (
        t for t in weight_targets(dlopt.finalize(small)) if t.path == "logits/kernel"
    )
    weight = kernel.variable.numpy()
    scale = np.abs(weight).max(axis=0) / 127
    (found,) = (
        t
        for t in read(path).tensors
        if t.data is not None and t.axis == 0 and t.shape == (10, 8)
    )
    np.testing.assert_array_equal(found.data, np.rint(weight / scale).T)
    np.testing.assert_allclose(found.scales, scale, rtol=1e-6)


def test_softmax_pooling_and_pruned_fused_convolutions(digits, tmp_path):
    model = split_activations(
        keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(8, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(8, 3, padding="same", activation="relu6"),
                layers.Flatten(),
                layers.Dense(10, activation="softmax"),
            ]
        )
    )
    weights = dlopt.Prune(0.5) >> dlopt.FakeQuant(bits=8)
    recipe = int8_recipe(model, weights=weights, input_range=(0, 1))
    small = train(model, digits, recipe=recipe, logits=False)
    path = tmp_path / "model.tflite"
    report = export.litert(small, path, io="int8", data=digits[0][:400])
    # A level of the logits can be several of the probabilities' 1/256.
    same(report.agreement, lsb=8)
    zeros = sum((t.data == 0).sum() for t in read(path).tensors if t.data is not None)
    assert zeros >= report.codes // 2


def test_depthwise_separable_net_average_pooling_and_lone_normalization(
    digits, tmp_path
):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(6.0),
            layers.DepthwiseConv2D(3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(6.0),
            layers.AveragePooling2D(2),
            layers.BatchNormalization(momentum=0.9),
            layers.Conv2D(12, 1, use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )
    small = train(model, digits)
    path = tmp_path / "model.tflite"
    report = export.litert(small, path, data=digits[0][:400])
    assert report.codes == 72 + 72 + 96 + 120
    same(report.agreement)


def test_concatenation_two_inputs_and_two_outputs(tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 2), name="image")
    extra = keras.Input((5,), name="extra")
    a = layers.Conv2D(4, 3, padding="same", activation="relu", name="a")(image)
    b = layers.Conv2D(4, 1, name="b")(a)
    x = layers.Concatenate(name="cat")([a, b, layers.MaxPooling2D(3, 1, "same")(a)])
    x = layers.Conv2DTranspose(4, 3, strides=2, name="up")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Concatenate(name="join")([x, extra])
    model = keras.Model(
        [image, extra], [layers.Dense(3, name="p")(x), layers.Dense(2, name="q")(x)]
    )
    small = dlopt.transform(model, int8_recipe(model))
    rng = np.random.default_rng(0)
    data = [
        rng.random((64, 8, 8, 2)).astype("float32"),
        rng.random((64, 5)).astype("float32"),
    ]
    small(data, training=True)
    path = tmp_path / "model.tflite"
    report = export.litert(small, path, data=data)
    same(report.agreement)
    p, q = export.run_litert(path, data)
    assert (p.shape, q.shape) == ((64, 3), (64, 2))


def test_plain_model_becomes_a_float_file(tmp_path):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, activation="tanh")])
    x = np.random.default_rng(0).normal(size=(9, 6)).astype("float32")
    path = tmp_path / "model.tflite"
    report = export.litert(model, path, data=x)
    assert not report.quantized
    open_batch = export.litert(model, path, data=x, batch_size=None)
    assert open_batch.agreement.examples == 9
    report = export.litert(model, path, data=x, batch_size=4)
    assert report.agreement.examples == 9  # two batches of 4, and one that is filled up
    np.testing.assert_allclose(export.run_litert(path, x), model(x), atol=1e-6)
    # Transforms without activation quantizers are baked in.
    small = dlopt.transform(
        model, dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    )
    small.update_transforms(0)
    export.litert(small, path)
    np.testing.assert_allclose(export.run_litert(path, x), small(x), atol=1e-6)


def test_agreement_counts_levels_and_leaves_ties_out():
    expected = np.array([[0.0, 1.0], [0.5, 0.75], [1.0, 0.0]])
    got = np.array([[0.0, 0.5], [0.75, 0.5], [0.0, 1.0]])
    found = export.agreement(expected, got, lsb=0.25)
    assert found == export.Agreement(
        examples=3, top1=1 / 3, top1_clear=0.5, ties=1, largest_lsb=4
    )


@pytest.mark.parametrize("dead", [5e-32, 1e-6])
def test_numbers_at_the_edge_are_exact(dead, tmp_path):
    keras.utils.set_random_seed(0)
    parts = [
        layers.Conv2D(6, 3, use_bias=False, name="c"),
        layers.BatchNormalization(name="n"),
        layers.ReLU(),
        layers.Conv2D(3, 1, name="dead"),
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(2, name="end"),
    ]
    net = keras.Sequential([keras.Input((6, 6, 3)), *parts])
    for name in ("c", "dead"):
        kernel = net.get_layer(name).kernel
        few = keras.ops.convert_to_numpy(kernel).copy()
        few[..., 0] = dead * np.sign(few[..., 0])
        few[..., 1] = 0
        kernel.assign(few)
    norm = net.get_layer("n")
    norm.gamma.assign([1, 1, 0, -1, 1e-32, 1])
    norm.beta.assign([0.5, 0.5, 0.5, 0.5, 0.5, 0])
    norm.moving_variance.assign([1, 1, 1, 1, 1, 0])
    net.get_layer("dead").bias.assign([0.5, 0.5, 0.0])
    x = np.random.default_rng(0).random((16, 6, 6, 3)).astype("float32")
    small = dlopt.post_training.quantize(net, x, input_range=(0, 1))
    report = dlopt.export.litert(small, tmp_path / "dead.tflite", data=x)
    assert report.agreement.largest_lsb <= 1


def test_a_constant_output_has_a_range_of_no_width(tmp_path):
    end = layers.Dense(2, kernel_initializer="zeros", name="end")
    net = keras.Sequential([keras.Input((3,)), layers.Dense(4), end])
    x = np.random.default_rng(0).random((16, 3)).astype("float32")
    small = dlopt.post_training.quantize(net, x)
    report = dlopt.export.litert(small, tmp_path / "zero.tflite", data=x)
    assert report.quantized
    np.testing.assert_allclose(dlopt.export.run_litert(report.path, x), 0, atol=1e-6)


@pytest.mark.parametrize("left", [0.0, 1e-32, 1e-7])
def test_activations_that_are_always_0_and_kernels_of_nothing_are_exported(
    left, tmp_path
):
    first = layers.Dense(4, activation="relu", use_bias=False, name="first")
    second, end = layers.Dense(4, name="second"), layers.Dense(2, name="end")
    net = keras.Sequential([keras.Input((3,)), first, second, end])
    first.kernel.assign(0 * first.kernel + left)
    second.kernel.assign(0 * second.kernel + left)
    second.bias.assign([0.5, -0.5, 0.25, 1.0])
    x = np.random.default_rng(0).random((16, 3)).astype("float32")
    small = dlopt.post_training.quantize(net, x, observer="min_max")
    report = dlopt.export.litert(small, tmp_path / "nothing.tflite", data=x)
    assert report.agreement.largest_lsb <= 1
    # 8 bits of the largest output, twice
    np.testing.assert_allclose(small(x), net(x), atol=0.02)


def test_a_dense_layer_of_one_unit_goes_with_any_others(tmp_path):
    inputs = keras.Input((3,))
    x = layers.Dense(4, activation="relu")(inputs)
    net = keras.Model(inputs, [layers.Dense(2)(x), layers.Dense(1)(x)])
    x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    for like in ("litert", "tfmot"):
        recipe = dlopt.int8_recipe(net, like=like)
        small = dlopt.post_training.quantize(net, x, recipe=recipe)
        report = dlopt.export.litert(small, tmp_path / f"{like}.tflite", data=x)
        assert report.codes == 12 + 8 + 4
        assert report.agreement.largest_lsb <= 1


def test_a_kernel_that_the_converter_rounds_coarser_only_for_its_bias(tmp_path):
    first, end = layers.Dense(3, name="first"), layers.Dense(2, name="end")
    net = keras.Sequential([keras.Input((3,)), first, end])
    first.kernel.assign(1e-7 * np.array([[1, -1, 2], [3, 1, 1], [1, 2, -3]]))
    first.bias.assign([0.5, -0.5, 1.0])
    x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    small = dlopt.post_training.quantize(net, x)
    report = dlopt.export.litert(small, tmp_path / "bias.tflite", data=x)
    assert report.codes == 9 + 6
    assert report.agreement.largest_lsb <= 1
