"""Exact removal: what carries nothing leaves, and the outputs stay."""

import os
import pathlib

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.surgery import remove_dead
from support.removing import randomized, relative


def net(*middle, shape=(6, 6, 4), seed=0):
    """A random model of these layers between an input and two outputs."""
    last = () if any(isinstance(la, L.Flatten) for la in middle) else (L.Flatten(),)
    layers = [keras.Input(shape), *middle, *last, L.Dense(2, name="out")]
    return randomized(keras.Sequential(layers), seed)


def kill(layer, *channels, to=0.0, bias=0.0):
    """Sets the kernel's columns, and the bias there."""
    kernel = np.array(layer.kernel)
    kernel[..., list(channels)] = to
    layer.kernel.assign(kernel)
    if layer.bias is not None:
        values = np.array(layer.bias)
        values[list(channels)] = bias
        layer.bias.assign(values)


def batch(model, count=5, scale=3.0):
    rng = np.random.default_rng(7)
    (given,) = model.inputs
    return rng.normal(size=(count, *given.shape[1:])).astype("float32") * scale


def check(model, removed, tolerance=1e-6):
    """Removes, and compares outputs and the channels that left, by layer."""
    before = [np.array(w) for w in model.weights]
    small, report = remove_dead(model)
    assert relative(model(batch(model)), small(batch(model))) < tolerance
    assert {one.path: one.channels for one in report.removed} == removed
    assert report.parameters_after == small.count_params()
    for old, now in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, now)
    return small, report


def test_zero_channels_leave_through_everything_that_hands_them_on():
    conv = L.Conv2D(6, 3, name="conv", padding="same", activation="relu")
    model = net(
        conv,
        L.MaxPooling2D(2),
        L.Dropout(0.5),
        L.DepthwiseConv2D(2, use_bias=False, padding="same"),
        L.Conv2D(5, 1, name="next"),
    )
    kill(conv, 1, 4, bias=-0.5)
    small, report = check(model, {"conv": (1, 4)})
    assert small.get_layer("conv").filters == 4
    assert small.name == model.name
    assert report.removed[0].reasons == ("zero", "zero")


def test_noise_far_below_rounding_counts_as_zero_and_a_proof_keeps_it():
    conv = L.Conv2D(6, 3, name="conv")
    model = net(conv, L.ReLU(6.0), L.Conv2D(5, 1, name="next"))
    kill(conv, 2, to=1e-32)
    check(model, {"conv": (2,)})
    assert not remove_dead(model, negligible=0.0)[1].removed


def test_a_constant_goes_into_the_next_bias_and_makes_one_where_there_is_none():
    conv = L.Conv2D(6, 3, name="conv", activation="sigmoid")
    model = net(conv, L.Conv2D(5, 2, name="next", use_bias=False), shape=(6, 6, 4))
    kill(conv, 0, 3, bias=0.7)
    small, report = check(model, {"conv": (0, 3)})
    assert report.removed[0].reasons == ("constant", "constant")
    assert small.get_layer("next").use_bias
    line = net(
        L.Dense(4, name="a", activation="tanh"), L.Dense(3, name="b"), shape=(5,)
    )
    kill(line.get_layer("a"), 1, bias=2.0)
    check(line, {"a": (1,)})


@pytest.mark.parametrize("pad", ["same", "layer"])
def test_a_constant_in_front_of_padding_stays(pad):
    conv = L.Conv2D(6, 3, name="conv", activation="sigmoid", padding="same")
    rest = [L.Conv2D(5, 3, padding="same")]
    if pad == "layer":
        rest = [L.ZeroPadding2D(1), L.Conv2D(5, 3)]
    model = net(conv, *rest)
    kill(conv, 0, bias=0.7)
    check(model, {})


def test_a_channel_that_relu_cuts_off_whatever_the_input():
    model = net(
        L.Dense(4, name="squash", activation="sigmoid"),
        L.Dense(5, name="cut", activation="relu"),
        L.Dense(3),
        shape=(5,),
    )
    cut = model.get_layer("cut")
    bias = np.array(cut.bias)
    bias[3] = -np.abs(np.array(cut.kernel)[:, 3]).sum() - 0.1
    cut.bias.assign(bias)
    check(model, {"cut": (3,)})


def test_what_nobody_reads_takes_with_it_what_only_it_reads():
    model = net(
        L.Dense(4, name="a"), L.Dense(5, name="b"), L.Dense(3, name="c"), shape=(5,)
    )
    b, c = (model.get_layer(name) for name in "bc")
    reads = np.array(c.kernel)
    reads[2] = 0  # b's channel 2 is not read
    c.kernel.assign(reads)
    only = np.array(b.kernel)
    only[1, [0, 1, 3, 4]] = 0  # a's channel 1 is read by b's channel 2 alone
    b.kernel.assign(only)
    _, report = check(model, {"a": (1,), "b": (2,)})
    assert {r for one in report.removed for r in one.reasons} == {"unread"}


def test_a_sum_keeps_what_one_side_needs():
    x = keras.Input((5,))
    one, two = L.Dense(4, name="one"), L.Dense(4, name="two")
    y = L.Dense(2)(L.Add()([one(x), two(x)]))
    model = randomized(keras.Model(x, y))
    kill(one, 0, 1)
    kill(two, 1, 2)
    check(model, {"one": (1,), "two": (1,)})


def test_a_normalization_turns_zero_into_its_offset():
    conv = L.Conv2D(6, 1, name="conv", use_bias=False)
    norm = L.BatchNormalization(name="norm", scale=False)
    model = net(conv, norm, L.ReLU(), L.Conv2D(4, 1))
    kill(conv, 2, 5)
    beta, mean = np.array(norm.beta), np.array(norm.moving_mean)
    beta[[2, 5]], mean[[2, 5]] = (-1.0, 2.0), 0.0
    norm.beta.assign(beta)
    norm.moving_mean.assign(mean)
    _, report = check(model, {"conv": (2, 5)})
    assert report.removed[0].reasons == ("zero", "constant")


def test_a_gate_of_a_dead_channel():
    x = keras.Input((6, 6, 3))
    main = L.Conv2D(8, 3, name="main", activation="relu", padding="same")
    y = main(x)
    gate = L.GlobalAveragePooling2D(keepdims=True)(y)
    gate = L.Conv2D(2, 1, activation="relu", name="down")(gate)
    gate = L.Conv2D(8, 1, activation="sigmoid", name="up")(gate)
    y = L.Conv2D(4, 3, padding="same")(L.Multiply()([y, gate]))
    model = randomized(keras.Model(x, L.GlobalAveragePooling2D()(y)))
    kill(main, 3, bias=-1.0)
    check(model, {"main": (3,), "up": (3,)})


def test_a_shared_layer_folds_zeros_only():
    x = keras.Input((5,))
    shared = L.Dense(5, name="shared", activation="sigmoid")
    y = L.Dense(2)(shared(shared(L.Dense(5, name="a")(x))))
    model = randomized(keras.Model(x, y))
    kill(shared, 1, bias=0.3)
    check(model, {})


def test_one_channel_stays_where_all_are_dead():
    a = L.Dense(4, name="a")
    model = net(a, L.ReLU(), L.Dense(3), shape=(5,))
    kill(a, 0, 1, 2, 3)
    small, _ = remove_dead(model)
    assert small.get_layer("a").units == 1
    assert relative(model(batch(model)), small(batch(model))) < 1e-6


def test_nothing_to_remove_is_an_equal_model():
    model = net(L.Conv2D(4, 3, activation="relu"), L.Conv2D(3, 1))
    model.compile("adam", "mse", metrics=["mae"])
    small, report = remove_dead(model)
    assert report.groups_removed == 0
    np.testing.assert_array_equal(small(batch(model)), model(batch(model)))
    assert small.compiled
    assert "parameters" in str(report)


def test_softmax_in_the_middle_holds_its_channels():
    model = net(L.Dense(4, name="a"), L.Softmax(), L.Dense(3), shape=(5,))
    kill(model.get_layer("a"), 1, bias=-30.0)
    small, report = remove_dead(model)
    assert small.get_layer("a").units == 4
    (pin,) = [pin for pin in report.pinned if pin.kind == "Softmax"]
    assert "mixes channels" in str(pin)


class Written(keras.Model):
    """A subclassed model of layers and operations."""

    def __init__(self):
        super().__init__()
        self.a, self.b = L.Dense(5, name="a"), L.Dense(2, name="b")

    def call(self, x):
        return self.b(ops.relu(self.a(x)) * 2.0)


class Branching(Written):
    """One whose way depends on values."""

    def call(self, x):
        return self.a(x) if float(ops.sum(x)) > 0 else self.b(self.a(x))


@pytest.mark.advice("graph/symbolic.py", "Write call() with layers and keras.ops")
def test_a_subclassed_model_becomes_a_functional_one():
    model = Written()
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    model(x)
    randomized(model)
    kill(model.a, 2, bias=-1.0)
    small, report = remove_dead(model)
    assert [one.channels for one in report.removed] == [(2,)]
    assert relative(model(x), small(x)) < 1e-6
    branching = Branching()
    branching.built = True
    with pytest.raises(ModelError, match="not known: it is a subclassed.*Pass example"):
        remove_dead(branching)
    branching = Branching()
    branching(x)
    text = r"Branching cannot be traced.*Write call\(\) with layers and keras.ops"
    with pytest.raises(ModelError, match=text):
        remove_dead(branching, example=x)


def test_arguments_are_checked():
    model = net(L.Dense(3), shape=(5,))
    with pytest.raises(ConfigError, match="negligible must be a number, 0 or greater"):
        remove_dead(model, negligible=-1.0)
    with pytest.raises(ConfigError, match="largest must be"):
        remove_dead(model, largest=0.0)
    with pytest.raises(ModelError, match=r"must be a built keras.Model"):
        remove_dead(keras.Sequential([L.Dense(2)]))


DATA = pathlib.Path(os.environ.get("KERAS_DLOPT_DATA", "nowhere"))
PERSON = DATA / "mlperf_tiny" / "mobilenet_person_96.h5"


class OldDepthwise(L.DepthwiseConv2D):
    """Reads what Keras 2 wrote."""

    @classmethod
    def from_config(cls, config):
        """Without the entry that Keras 3 does not know."""
        config = {k: v for k, v in config.items() if k != "groups"}
        return L.DepthwiseConv2D.from_config(config)


def multiplications(model):
    """Of convolutions and dense layers, an image."""
    total = 0
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            places = np.prod(layer.output.shape[1:-1], initial=1)
            total += int(np.prod(layer.kernel.shape)) * int(places)
    return total


def structured(count, shape):
    """Flat, striped, graded and half images."""
    height, width, depth = shape
    rows, columns = np.mgrid[0:height, 0:width]
    images = []
    for i in range(count):
        kind, rate = i % 4, 1 + i // 4
        plane = [
            np.full((height, width), rate / (count / 4)),
            np.sin(rows * rate / 5) / 2 + 0.5,
            columns / width * rate / (count / 4),
            (columns > width * rate / (count / 4 + 1)).astype(float),
        ][kind]
        images.append(np.stack([plane * (1 - 0.2 * c) for c in range(depth)], -1))
    return np.array(images, "float32")


@pytest.mark.skipif(not PERSON.exists(), reason="KERAS_DLOPT_DATA has no mlperf_tiny")
def test_mlperf_person_detection():
    model = keras.models.load_model(
        PERSON, custom_objects={"DepthwiseConv2D": OldDepthwise}, compile=False
    )
    small, report = remove_dead(model)
    assert model.count_params() == 221_794
    assert report.channels_removed == 971
    assert small.count_params() <= 34_722
    assert multiplications(small) <= 3_750_000
    rng = np.random.default_rng(0)
    noise = rng.random((1_000, 96, 96, 3)).astype("float32")
    for images in (noise, structured(64, (96, 96, 3))):
        one, other = (m.predict(images, verbose=0) for m in (model, small))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


class Standardized(L.Conv2D):
    """Its kernel has mean 0 over each filter's inputs when it convolves."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel - ops.mean(kernel, (0, 1, 2)))


class Renamed(L.Conv2D):
    """Computes as its parent does."""

    def __init__(self, filters, size, **kwargs):
        kwargs.pop("kernel_size", None)
        super().__init__(filters, size, **kwargs)

    def get_config(self):
        config = super().get_config()
        return {**config, "size": config.pop("kernel_size")}


def test_a_class_with_a_computation_of_its_own_is_not_taken_for_its_parent():
    model = net(L.Conv2D(4, 3, name="a"), Standardized(5, 3, name="b"))
    kill(model.get_layer("a"), 1)
    small, report = remove_dead(model)
    assert small.get_layer("a").filters == 4
    assert "no rule for Standardized" in {pin.reason for pin in report.pinned}
    model = net(L.Conv2D(4, 3, name="a"), Renamed(5, 3, name="b"))
    kill(model.get_layer("a"), 1)
    check(model, {"a": (1,)})
    model = net(L.Conv2D(4, 3, name="a"), L.Conv2D(5, 3, name="b"))
    kill(model.get_layer("a"), 1)
    second = model.get_layer("b")
    whole = second.call
    second.call = lambda x: whole(x) + ops.max(x)
    assert remove_dead(model)[1].removed == ()


@pytest.mark.parametrize("nested", [False, True])
def test_statistics_of_the_batch_are_not_those_of_inference(nested):
    x = keras.Input((5,))
    y = L.Dense(4, name="a")(x)
    norm = L.BatchNormalization(name="norm")
    if nested:
        given = keras.Input((4,))
        y = keras.Model(given, norm(given), name="inner")(y, training=True)
    else:
        y = norm(y, training=True)
    model = randomized(keras.Model(x, L.Dense(2, name="b")(y)))
    kill(model.get_layer("a"), 1)
    small, report = remove_dead(model)
    assert report.removed == ()
    given = batch(model, count=16)
    assert relative(model(given), small(given)) < 1e-6


@pytest.mark.parametrize("layer", [L.ELU(-1.0), L.ReLU(threshold=0.5)])
def test_activations_that_fall(layer):
    """What is negative for every input becomes positive for some of them."""
    model = keras.Sequential(
        [
            keras.Input((5,)),
            L.Dense(4, activation="sigmoid"),
            L.Dense(4, name="a"),
            layer,
            L.ReLU(name="end"),
            L.Dense(2),
        ]
    )
    randomized(model)
    a = model.get_layer("a")
    a.bias.assign(-np.abs(np.array(a.kernel)).sum(axis=0))
    small, _ = remove_dead(model)
    assert relative(model(batch(model)), small(batch(model))) < 1e-6


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_constant_goes_into_the_bias_by_hand(size):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(2, 1, activation="relu", name="a"),
            keras.layers.Conv2D(3, size, name="b"),
        ]
    )
    kernel = np.random.default_rng(0).normal(size=(size, size, 2, 3))
    model.get_layer("a").set_weights(
        [np.array([[[[1.0, 0.0]]]]), np.array([0.25, 0.5])]
    )
    model.get_layer("b").set_weights([kernel, np.arange(1.0, 4.0)])
    small, _ = remove_dead(model)
    found, bias = small.get_layer("b").get_weights()
    np.testing.assert_allclose(found, kernel[:, :, :1], rtol=1e-6)
    wanted = np.arange(1.0, 4.0) + 0.5 * kernel[:, :, 1].sum(axis=(0, 1))
    np.testing.assert_allclose(bias, wanted, rtol=1e-6)


def test_a_shared_layer_that_reads_two_constants_keeps_both():
    given = keras.Input((3,))
    one, two = (L.Dense(2, activation="relu", name=name)(given) for name in "ab")
    shared = L.Dense(2, name="shared")
    model = randomized(keras.Model(given, L.Add()([2.0 * shared(one), shared(two)])))
    for name, constant in (("a", 0.5), ("b", 4.0)):
        kill(model.get_layer(name), 1, bias=constant)
    small, _ = remove_dead(model)
    x = batch(model)
    assert relative(model(x), small(x)) < 1e-6


def test_a_shared_convolution_that_reads_two_constants_keeps_both():
    given = keras.Input((5, 3))
    one, two = (L.Conv1D(2, 1, activation="relu", name=n)(given) for n in "ab")
    shared = L.Conv1D(2, 2, name="shared")
    model = randomized(keras.Model(given, L.Concatenate()([shared(one), shared(two)])))
    for name, constant in (("a", 0.25), ("b", 3.0)):
        kill(model.get_layer(name), 0, bias=constant)
    small, _ = remove_dead(model)
    x = batch(model)
    assert relative(model(x), small(x)) < 1e-6
