import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import Target
from keras_dlopt.transforms.quantize.fake_quant import fake_quant
from keras_dlopt.transforms.quantize.layout import channel_axes
from reference.transforms import asymmetric_quant, symmetric_quant


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("shape", [(5, 3), (3, 3, 2, 4)])
def test_weights_equal_the_twin_and_the_hint_is_exact(bits, shape):
    weight = np.random.default_rng(0).normal(size=shape).astype("float32")
    target = Target("kernel", layer=keras.layers.Dense(1))
    transform = dlopt.FakeQuant(bits=bits)
    codes, value = symmetric_quant(weight, bits, (len(shape) - 1,))
    final, hint = transform.finalize(target, weight, {})
    np.testing.assert_array_equal(hint.codes, codes)
    np.testing.assert_allclose(final, value, rtol=1e-6)
    np.testing.assert_array_equal((hint.codes * hint.scale).astype("float32"), final)
    # Training sees what finalize keeps, up to one rounding of the division.
    np.testing.assert_allclose(transform.evaluate(target, weight, {}), final, rtol=3e-7)


def test_straight_through_gradient_is_one():
    weight = tf.constant(np.random.default_rng(0).normal(size=(6, 2)), "float32")
    slope = tf.constant(np.arange(12.0).reshape(6, 2), "float32")
    from keras_dlopt.transforms import Context

    with tf.GradientTape() as tape:
        tape.watch(weight)
        context = Context(Target("kernel", layer=keras.layers.Dense(1)))
        y = dlopt.FakeQuant(bits=3).apply(weight, {}, context)
        loss = tf.reduce_sum(y * slope)
    np.testing.assert_array_equal(tape.gradient(loss, weight), slope)


def test_a_channel_of_zeros_stays_zero():
    weight = np.zeros((3, 2), "float32")
    weight[:, 0] = 1
    target = Target("kernel", layer=keras.layers.Dense(1))
    assert np.array_equal(dlopt.FakeQuant().evaluate(target, weight, {}), weight)
    assert np.array_equal(dlopt.FakeQuant().finalize(target, weight, {})[0], weight)


@pytest.mark.parametrize(
    ("layer", "name", "axes"),
    [
        (keras.layers.Conv2D(1, 1), "kernel", (3,)),
        (keras.layers.DepthwiseConv2D(1), "kernel", (2, 3)),
        (keras.layers.SeparableConv2D(1, 1), "depthwise_kernel", (2, 3)),
        (keras.layers.SeparableConv2D(1, 1), "pointwise_kernel", (3,)),
        (keras.layers.Conv2DTranspose(1, 1), "kernel", (2,)),
    ],
)
def test_where_output_channels_are(layer, name, axes):
    assert channel_axes(Target(f"x/{name}", layer=layer), 4) == axes


@settings(max_examples=40, deadline=None)
@given(
    st.floats(-8, 0, width=32),
    st.floats(0.125, 8, width=32),
    st.integers(2, 16),
    st.integers(0, 1000),
)
def test_activations_equal_the_twin(low, high, bits, seed):
    x = np.random.default_rng(seed).uniform(-9, 9, 50).astype("float32")
    got = np.asarray(fake_quant(x, np.float32(low), np.float32(high), bits=bits))
    want = asymmetric_quant(x, low, high, bits)
    step = (high - low) / (2**bits - 1)
    # Halves may round either way in float32.
    assert np.abs(got - want).max() <= step * 1.01
    assert (np.abs(got - want) > step / 10).mean() <= 0.1
    assert float(fake_quant(np.zeros(1, "float32"), low, high, bits=bits)[0]) == 0


def test_backends_agree_on_values_and_gradients(monkeypatch):
    x = tf.constant(np.random.default_rng(0).uniform(-3, 3, 200), "float32")
    results = []
    for backend in ("tensorflow", "other"):
        monkeypatch.setattr(keras.backend, "backend", lambda b=backend: b)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = fake_quant(x, tf.constant(-1.0), tf.constant(2.0), bits=4)
            loss = tf.reduce_sum(y * x)
        results.append((y.numpy(), tape.gradient(loss, x).numpy()))
    (a, da), (b, db) = results
    np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(da, db, atol=1e-6)


def _activation_model(**kwargs):
    model = keras.Sequential([keras.Input((3,)), keras.layers.ReLU(name="r")])
    entry = dlopt.at("r/output"), dlopt.FakeQuantActivation(**kwargs)
    return dlopt.transform(model, dlopt.Recipe([entry]))


def test_moving_range_starts_at_the_first_batch_and_rests_in_inference():
    small = _activation_model(momentum=0.75)
    state = small.groups[0].slots[0].state
    low, high = [], []
    for peak in (4.0, 8.0):
        small(np.full((2, 3), peak, "float32"), training=True)
        low.append(float(state["low"].numpy()))
        high.append(float(state["high"].numpy()))
    assert low == [0.0, 0.0]
    assert high == [4.0, 0.75 * 4 + 0.25 * 8]
    small(np.full((2, 3), 99.0, "float32"), training=False)
    assert float(state["high"].numpy()) == high[-1]
    clipped = small(np.full((2, 3), 99.0, "float32"), training=False)
    assert float(keras.ops.max(clipped)) == pytest.approx(5.0)


def test_hooked_layers_are_untouched_outside_of_the_transformed_model():
    small = _activation_model(bits=2, range=(0.0, 3.0))
    x = np.array([[0.4, 1.6, 9.0]], "float32")
    np.testing.assert_array_equal(small(x), [[0.0, 2.0, 3.0]])
    np.testing.assert_array_equal(small.model(x), x)


def test_shared_layers_are_quantized_at_every_call():
    relu = keras.layers.ReLU(name="r")
    inputs = keras.Input((1,))
    model = keras.Model(inputs, relu(keras.layers.Rescaling(1 / 3)(relu(inputs))))
    entry = dlopt.at("r/output"), dlopt.FakeQuantActivation(bits=2, range=(0.0, 3.0))
    small = dlopt.transform(model, dlopt.Recipe([entry]))
    # 1.4 -> 1 -> 1/3 -> 0, but 1.6 -> 2 -> 2/3 -> 1.
    assert float(small(np.array([[1.4]], "float32"))[0, 0]) == 0.0
    assert float(small(np.array([[1.6]], "float32"))[0, 0]) == 1.0


@pytest.mark.parametrize("bits", [1, 17, 8.0, True, None])
@pytest.mark.parametrize("make", [dlopt.FakeQuant, dlopt.FakeQuantActivation])
def test_bits_outside_their_range(bits, make):
    with pytest.raises(ConfigError, match=r"in \[2, 16\]. Received"):
        make(bits=bits)


def test_bad_activation_arguments():
    with pytest.raises(ConfigError, match=r"momentum must be a number in \[0, 1\)"):
        dlopt.FakeQuantActivation(momentum=1.0)
    with pytest.raises(ConfigError, match="low <= 0 <= high"):
        dlopt.FakeQuantActivation(range=(1.0, 2.0))
