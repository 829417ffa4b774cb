import keras
import numpy as np
import pytest

from keras_dlopt.errors import ConfigError
from keras_dlopt.layers import Residual, StochasticDepth
from keras_dlopt.layers.residual import shortcut_distance
from reference import layers as twin


def _x(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _dense(units, **kwargs):
    return keras.layers.Dense(units, **kwargs)


def test_identity_adds_the_input():
    body = _dense(4, activation="tanh")
    block = Residual(body)
    x = _x(3, 4)
    np.testing.assert_allclose(block(x), x + body(x), rtol=1e-6)
    assert block.projection == []


def test_a_list_is_applied_in_order_and_activation_comes_last():
    first, second = _dense(6), _dense(4)
    block = Residual([first, second], activation="relu")
    x = _x(3, 4)
    expected = np.maximum(np.asarray(second(first(x))) + x, 0)
    np.testing.assert_allclose(block(x), expected, rtol=1e-5, atol=1e-6)


def test_projection_of_vectors_is_a_matrix():
    block = Residual(_dense(6))
    x = _x(3, 4)
    y = block(x)
    short = x @ np.asarray(block.projection[0].kernel)
    np.testing.assert_allclose(y, np.asarray(block.body[0](x)) + short, rtol=1e-5)
    assert block.compute_output_shape((None, 4)) == (None, 6)


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_projection_strides_follow_the_body(rank):
    conv = {3: keras.layers.Conv1D, 4: keras.layers.Conv2D, 5: keras.layers.Conv3D}
    block = Residual(conv[rank](6, 3, strides=2, padding="same"))
    spots = (5, 8, 6)[: rank - 2]
    y = block(_x(2, *spots, 3))
    assert tuple(y.shape) == (2, *(-(-s // 2) for s in spots), 6)
    # Also where the positions are not known when the layer is built.
    again = Residual(conv[rank](6, 3, strides=2, padding="same"))
    out = again(keras.Input((*(None for _ in spots), 3)))
    assert again.projection[0].strides == (2,) * (rank - 2)
    assert out.shape[-1] == 6


def test_projection_is_a_strided_1x1_convolution():
    body = keras.layers.Conv2D(5, 3, strides=2, padding="same", use_bias=False)
    block = Residual(body)
    x = _x(2, 7, 7, 3)
    y = block(x)
    short = twin.conv_same(x, np.asarray(block.projection[0].kernel), 2)
    main = twin.conv_same(x, np.asarray(body.kernel), 2)
    np.testing.assert_allclose(y, main + short, rtol=1e-5, atol=1e-5)


def test_pad_takes_every_second_position_and_adds_zero_channels():
    body = keras.layers.Conv2D(
        5, 3, strides=2, padding="same", kernel_initializer="zeros"
    )
    block = Residual(body, shortcut="pad")
    x = _x(2, 7, 8, 3)
    y = np.asarray(block(x))
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    assert not y[..., 3:].any()


def test_pad_channels_first_and_of_vectors():
    body = keras.layers.Permute((1, 2))
    block = Residual(_dense(6, kernel_initializer="zeros"), shortcut="pad")
    x = _x(2, 4)
    np.testing.assert_array_equal(np.asarray(block(x))[:, :4], x)

    class Widen(keras.layers.Layer):
        def call(self, inputs):
            return keras.ops.concatenate([inputs, inputs], axis=1)[:, :, ::2] * 0.0

        def compute_output_shape(self, shape):
            return (shape[0], shape[1] * 2, -(-shape[2] // 2))

    block = Residual(Widen(), shortcut="pad", data_format="channels_first")
    x = _x(2, 3, 7)
    y = np.asarray(block(x))
    assert y.shape == (2, 6, 4)
    np.testing.assert_array_equal(y[:, :3], x[:, :, ::2])
    assert not y[:, 3:].any()
    assert body.built is not None


@pytest.mark.parametrize(("scale", "first"), [("rezero", 0.0), ("layerscale", 1e-6)])
def test_scale_starts_near_the_identity(scale, first):
    block = Residual(_dense(4), scale=scale)
    x = _x(3, 4)
    body = np.asarray(block.body[0](x)) if block.built else None
    y = np.asarray(block(x))
    body = np.asarray(block.body[0](x))
    np.testing.assert_allclose(y, x + first * body, rtol=1e-6)
    (weight,) = [v for v in block.trainable_weights if v.name in ("alpha", "gamma")]
    weight.assign(np.full(weight.shape, 0.5, "float32"))
    np.testing.assert_allclose(block(x), x + 0.5 * body, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_distance_equals_the_twin(distance):
    a, b = _x(5, 3, 4), _x(5, 3, 4, seed=1)
    got = float(shortcut_distance(a, b, distance=distance))
    assert got == pytest.approx(getattr(twin, distance)(a, b), rel=1e-5)


def test_cosine_has_a_finite_gradient_where_the_body_is_zero():
    import tensorflow as tf

    x = tf.zeros((2, 4))
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = shortcut_distance(x, tf.ones((2, 4)), distance="cosine")
    assert np.isfinite(tape.gradient(value, x)).all()


def _model(**kwargs):
    inputs = keras.Input((4,))
    x = Residual(_dense(4, activation="tanh"), name="block", **kwargs)(inputs)
    model = keras.Model(inputs, _dense(3)(x))
    model.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_the_term_enters_the_loss_of_fit_and_is_a_metric(distance):
    x, y = _x(12, 4), np.arange(12) % 3
    model = _model(shortcut_loss=0.3, distance=distance)
    history = model.fit(x, y, batch_size=4, verbose=0, shuffle=False).history
    block = model.get_layer("block")
    body = np.asarray(block.body[0](x))
    # The mean over equal batches is the mean over all.
    term = getattr(twin, distance)(body, x)
    plain = float(model.loss(y, model(x)))
    assert history["loss"][0] == pytest.approx(plain + 0.3 * term, rel=1e-4)
    assert history["block_shortcut_loss"][0] == pytest.approx(term, rel=1e-4)
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(plain + 0.3 * term, rel=1e-4)


def test_without_the_term_there_is_no_metric():
    logs = _model().fit(_x(4, 4), np.zeros(4), verbose=0).history
    assert list(logs) == ["loss"]


def test_the_term_moves_the_body_towards_the_shortcut():
    x, y = _x(32, 4), np.zeros(32, int)
    terms = {}
    for weight in (1e-6, 10.0):
        keras.utils.set_random_seed(1)
        model = _model(shortcut_loss=weight)
        model.optimizer.learning_rate = 0.05
        logs = model.fit(x, y, batch_size=32, epochs=30, verbose=0).history
        terms[weight] = logs["block_shortcut_loss"]
    assert terms[1e-6][0] == pytest.approx(terms[10.0][0], rel=1e-5)
    assert terms[10.0][-1] < 0.5 * terms[1e-6][-1]


def test_stochastic_depth_keeps_the_mean_and_drops_whole_examples():
    drop = StochasticDepth(0.8, seed=3)
    y = np.asarray(drop(np.ones((20_000, 2), "float32"), training=True))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.8)}
    np.testing.assert_array_equal(y[:, 0], y[:, 1])
    # Standard error of the mean: sqrt(0.2 / 0.8 / 20,000) = 0.0035; five of them.
    assert abs(y.mean() - 1) < 0.018
    np.testing.assert_array_equal(drop(y), y)


def test_dropped_examples_are_their_shortcut():
    block = Residual(_dense(4, bias_initializer="ones"), survival=0.5, seed=1)
    x = _x(64, 4)
    y = np.asarray(block(x, training=True))
    kept = np.any(y != x, axis=1)
    assert 10 < kept.sum() < 54
    np.testing.assert_allclose(
        y[kept], x[kept] + 2 * np.asarray(block.body[0](x))[kept], rtol=1e-4, atol=1e-5
    )


def test_the_dtype_policy_reaches_the_inner_layers():
    block = Residual(_dense(6, dtype="mixed_bfloat16"), dtype="mixed_bfloat16")
    y = block(_x(2, 4))
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    assert block.projection[0].compute_dtype == "bfloat16"
    assert {v.dtype for v in block.weights} == {"float32"}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: Residual(_dense(4), shortcut="skip"),
            "shortcut must be one of 'auto'",
        ),
        (lambda: Residual(_dense(4), scale="big"), "scale must be one of None"),
        (
            lambda: Residual(_dense(4), distance="l1"),
            "distance must be 'mse' or 'cosine'",
        ),
        (
            lambda: Residual(_dense(4), shortcut_loss=-1),
            "shortcut_loss must be a number",
        ),
        (
            lambda: Residual(_dense(4), survival=0),
            r"survival must be a number in \(0, 1\]",
        ),
        (lambda: Residual(_dense(4), survival=1.5), r"Received: 1\.5"),
        (lambda: StochasticDepth(True), r"survival must be a number in \(0, 1\]"),
        (lambda: Residual([]), "body must be a Keras layer or a list"),
        (lambda: Residual(lambda x: x), "body must be a Keras layer or a list"),
        (lambda: Residual([lambda x: x]), r"Wrap a function in keras\.layers\.Lambda"),
        (
            lambda: Residual(_dense(4), data_format="NHWC"),
            "data_format must be 'channels_last' or",
        ),
    ],
)
def test_unknown_arguments(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_unknown_keyword_arguments_are_refused():
    with pytest.raises(ValueError, match="shortcuts"):
        Residual(_dense(4), shortcuts="pad")


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (lambda: Residual(_dense(6), shortcut="identity"), (2, 4)),
        (lambda: Residual(keras.layers.Conv2D(4, 3)), (2, 8, 8, 4)),
        (lambda: Residual(keras.layers.Flatten()), (2, 3, 3)),
    ],
)
def test_shapes_that_cannot_be_added_are_both_named(block, shape):
    layer = block()
    with pytest.raises(ConfigError) as error:
        layer(_x(*shape))
    text = str(error.value)
    assert f"from an input of {shape}" in text
    assert "the body gives shape" in text
    assert "use shortcut='auto' or 'projection'" in text


def test_pad_cannot_drop_channels():
    with pytest.raises(ConfigError, match=r"a pad shortcut cannot drop channels"):
        Residual(_dense(2), shortcut="pad")(_x(2, 4))
