"""Activation quantizers against float64 twins: ranges, learned steps, phases."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import keras_dlopt as dlopt
from keras_dlopt import transforms as t
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import Target
from keras_dlopt.transforms import Context
from keras_dlopt.transforms.quantize.fake_quant import fake_quant
from reference import quantize as twin

HERE = Target("r/output", kind="activation")


def model_with(transform):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Activation("linear")])
    model.layers[0].name = "r"
    recipe = dlopt.Recipe([(dlopt.at("r/output"), transform)])
    small = dlopt.transform(model, recipe)
    return small, small.groups[0].slots[0].state


def batch(*values):
    return np.resize(np.array(values, "float32"), (2, 4))


def gradients(transform, x, upstream, state):
    x, state = tf.constant(x), {k: tf.constant(v, "float32") for k, v in state.items()}
    with tf.GradientTape() as tape:
        tape.watch([x, state])
        y = transform.apply(x, state, Context(HERE))
        loss = tf.reduce_sum(y * upstream)
    d_x, d_state = tape.gradient(loss, [x, state])
    return np.asarray(y), np.asarray(d_x), d_state


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("narrow", [False, True])
def test_fused_and_written_out_forms_equal_tensorflows(bits, narrow, monkeypatch):
    x = np.random.default_rng(0).uniform(-3, 3, 300).astype("float32")
    want = tf.quantization.fake_quant_with_min_max_args(
        x, -1.5, 2.0, num_bits=bits, narrow_range=narrow
    )
    for backend in ("tensorflow", "other"):
        monkeypatch.setattr(keras.backend, "backend", lambda b=backend: b)
        got = fake_quant(
            tf.constant(x),
            tf.constant(-1.5),
            tf.constant(2.0),
            bits=bits,
            narrow_range=narrow,
        )
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
def test_lsq_equals_its_paper(signed):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 6)).astype("float32")
    upstream = rng.normal(size=x.shape).astype("float32")
    transform = t.LSQActivation(bits=3, signed=signed)
    low, high = transform.codes
    state = {"step": 0.4, "magnitude": 0.0, "seen": 0.0, "on": 1.0}
    y, d_x, d = gradients(transform, x, upstream, state)
    g = 1 / (6 * high) ** 0.5  # six features an example
    want, d_want, d_step, _ = twin.lsq(x, upstream, 0.4, 0.0, low, high, g)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_x, d_want, rtol=1e-5)
    assert float(d["step"]) == pytest.approx(d_step, rel=1e-4)


def test_lsq_plus_equals_its_paper():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 6)).astype("float32")
    upstream = rng.normal(size=x.shape).astype("float32")
    state = dict(step=0.5, offset=-0.3, low=0.0, high=0.0, seen=0.0, on=1.0)
    y, d_x, d = gradients(t.LSQPlusActivation(bits=2), x, upstream, state)
    want, d_want, d_step, d_offset = twin.lsq(
        x, upstream, 0.5, -0.3, 0, 3, 1 / (6 * 3) ** 0.5
    )
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_x, d_want, rtol=1e-5)
    assert float(d["step"]) == pytest.approx(d_step, rel=1e-4)
    assert float(d["offset"]) == pytest.approx(d_offset, rel=1e-4)


def test_pact_equals_its_paper():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 6)).astype("float32")
    upstream = rng.normal(size=x.shape).astype("float32")
    level = tf.constant(0.9)
    with tf.GradientTape() as tape:
        tape.watch(level)
        given = tf.constant(x)
        tape.watch(given)
        y = t.PACT(bits=2).apply(given, {"level": level}, Context(HERE))
        loss = tf.reduce_sum(y * upstream)
    d_x, d_level = tape.gradient(loss, [given, level])
    want, d_want, d_wanted = twin.pact(x.astype("float64"), upstream, 0.9, 2)
    np.testing.assert_allclose(y, want, atol=1e-6)
    np.testing.assert_allclose(d_x, d_want)
    assert float(d_level) == pytest.approx(d_wanted, rel=1e-5)


def test_pact_adds_its_decay_to_the_loss_in_training():
    losses = []
    state = {"level": tf.constant(3.0)}
    x = tf.constant([[1.0]])
    for training in (True, False):
        context = Context(HERE, training=training, add_loss=losses.append)
        t.PACT(bits=4, decay=0.5).apply(x, state, context)
    assert [float(v) for v in losses] == [4.5]


def test_learned_quantizers_measure_before_they_round():
    small, state = model_with(t.LSQActivation(bits=2, signed=True, begin=2))
    small.update_transforms(0)
    for x in (batch(1, -1), batch(3, -3)):
        np.testing.assert_array_equal(small(x, training=True), x)
    assert float(state["magnitude"]) == 2.0
    small(batch(9), training=False)
    assert float(state["seen"]) == 2.0
    assert small.groups[0].transform.remaining(1) == "rounding begins at step 2"
    small.update_transforms(2)
    assert float(state["step"]) == pytest.approx(4.0)  # 2 mean|x| / sqrt(1)
    np.testing.assert_array_equal(small(batch(3, -30)), batch(4, -8))
    small(batch(50), training=True)
    assert float(state["magnitude"]) == 2.0
    small.update_transforms(5)
    assert float(state["step"]) == pytest.approx(4.0)

    small, state = model_with(t.LSQPlusActivation(bits=2))
    small.update_transforms(0)
    small(batch(-1, 5), training=True)
    small.update_transforms(1)
    assert (float(state["step"]), float(state["offset"])) == (2.0, -1.0)
    np.testing.assert_array_equal(small(batch(-9, 0.4, 2.1, 9)), batch(-1, 1, 3, 5))


def test_ranges_by_every_observer():
    x = np.linspace(-1, 3, 8, dtype="float32").reshape(2, 4)

    def ends(transform, *batches):
        small, state = model_with(transform)
        for b in batches:
            small(b, training=True)
        return float(state["low"]), float(state["high"])

    widest = t.FakeQuantActivation(observer="min_max")
    assert ends(widest, x, 2 * x, x) == (-2.0, 6.0)
    started = t.FakeQuantActivation(observer="min_max", initial=(-6, 6))
    assert ends(started, x, 3 * x) == (-6.0, 9.0)
    average = t.FakeQuantActivation(initial=(-6, 6), momentum=0.5)
    assert ends(average, x) == (-3.5, 4.5)
    own = t.FakeQuantActivation(observer=t.MovingAverage(0.25))
    assert ends(own, x, 2 * x) == (-1.75, 5.25)
    held = t.FakeQuantActivation(observer="peak_hold", momentum=0.5)
    assert ends(held, x, 2 * x, x) == (-1.5, 4.5)
    assert ends(t.FakeQuantActivation(observer=t.PeakHold(0.5)), 2 * x, x) == (
        -1.5,
        4.5,
    )
    low, high = ends(t.FakeQuantActivation(observer=t.Percentile(75.0)), x)
    np.testing.assert_allclose([low, high], np.quantile(x, [0.25, 0.75]), rtol=1e-5)
    even = t.FakeQuantActivation(symmetric=True)
    assert ends(even, x) == (-3.0, 3.0)


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12),
    st.floats(0, 0.96875, width=32),
)
def test_held_peaks_are_as_the_formula_says(peaks, momentum):
    transform = t.FakeQuantActivation(observer="peak_hold", momentum=momentum)
    state = {k: tf.constant(s.value) for k, s in transform.init(HERE, None).items()}
    expected = twin.peak_hold(peaks, momentum)
    for peak, (low, high) in zip(peaks, expected, strict=True):
        x = np.array([[peak, 0.0]], "float32")
        context = Context(HERE, training=True, write=state.__setitem__)
        got = transform.apply(x, state, context)
        # float32 sums of at most 12 batches
        np.testing.assert_allclose(
            [state["low"], state["high"]], [low, high], rtol=1e-5, atol=1e-5
        )
        # No value of a batch is clipped in its own step: half a level at most.
        assert abs(got[0, 0] - peak) <= 0.51 * (high - low) / 255 + 1e-6


@pytest.mark.parametrize("observer", ["moving_average", "peak_hold", t.PeakHold(0.75)])
def test_the_momentum_is_kept_in_files(observer):
    made = t.FakeQuantActivation(momentum=0.75, observer=observer)
    again = t.FakeQuantActivation.from_config(made.get_config())
    assert again == made
    assert (again.momentum, again.observer.momentum) == (0.75, 0.75)
    # A config of version 0.1: the observer by name, with a momentum of its own.
    old = made.get_config()
    old["observer"]["config"]["momentum"] = 0.95
    assert t.FakeQuantActivation.from_config(old) == made


def test_mse_leaves_an_outlier_out():
    rng = np.random.default_rng(0)
    x = np.append(rng.normal(size=(199, 4)), [[0, 0, 0, 20.0]], 0).astype("float32")
    small, state = model_with(t.FakeQuantActivation(bits=4, observer="mse"))
    small(x, training=True)
    assert 2 < float(state["high"]) < 16
    error = np.square(np.asarray(small(x)) - x).mean()
    widest, _ = model_with(t.FakeQuantActivation(bits=4))
    widest(x, training=True)
    assert error < np.square(np.asarray(widest(x)) - x).mean()


def test_ranges_begin_and_freeze():
    small, state = model_with(t.FakeQuantActivation(bits=2, begin=1, freeze=2))
    small.update_transforms(0)
    x = batch(0.0, 0.4, 1.7, 3.0)
    np.testing.assert_array_equal(small(x, training=True), x)
    assert float(state["high"]) == 3.0
    small.update_transforms(1)
    np.testing.assert_array_equal(small(x), batch(0, 0, 2, 3))
    small.update_transforms(2)
    small(10 * x, training=True)
    assert float(state["high"]) == 3.0
    assert small.groups[0].transform.remaining(0) == "quantization begins at step 1"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: t.FakeQuantActivation(observer="kl"), "histogram of all data"),
        (lambda: t.FakeQuantActivation(initial=(1, 2)), "initial must be"),
        (
            lambda: t.FakeQuantActivation(begin=-1),
            "begin must be a whole number, 0 or greater",
        ),
        (
            lambda: t.LSQActivation(begin=0),
            "begin must be a whole number, 1 or greater.*before it",
        ),
        (lambda: t.LSQActivation(bits=1, signed=True), r"in \[2, 16\]"),
        (lambda: t.LSQPlusActivation(bits=0), r"in \[1, 16\]"),
        (lambda: t.PACT(initial=0.0), "initial must be a positive number.*clipped"),
        (lambda: t.PACT(bits=17), r"in \[1, 16\]"),
    ],
)
def test_bad_arguments(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_a_model_that_never_saw_data_passes_activations_as_they_are():
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    recipe = dlopt.Recipe([(dlopt.everything(), t.FakeQuantActivation(bits=2))])
    small = dlopt.transform(net, recipe)
    np.testing.assert_array_equal(small(x), net(x))
    small(x, training=True)
    assert np.unique(small(x)).size <= 4
