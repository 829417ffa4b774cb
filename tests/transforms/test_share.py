import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import Target
from keras_dlopt.transforms import Context
from keras_dlopt.transforms.share import hashed

L = keras.layers


def _net():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((6,)), *(L.Dense(6, name=f"d{i}") for i in range(3)), L.Dense(2)]
    )


def _tied(**kwargs):
    recipe = dlopt.Recipe([(dlopt.matching("d./kernel"), dlopt.Share(**kwargs))])
    return dlopt.transform(_net(), recipe)


def test_one_kernel_is_trained_for_all_layers():
    tied = _tied()
    names = [v.path for v in tied.trainable_variables if "shared" in v.path]
    assert len(names) == 1
    kernels = [la.kernel.numpy() for la in _net().layers[:3]]
    tied.compile("sgd", "mse")
    before = dlopt.finalize(tied).layers[0].kernel.numpy()
    np.testing.assert_allclose(before, np.mean(kernels, 0), atol=1e-7)
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    tied.fit(x, np.ones((8, 2)), verbose=0)
    plain = dlopt.finalize(tied)
    for layer in plain.layers[1:3]:
        np.testing.assert_array_equal(layer.kernel, plain.layers[0].kernel)
    assert not np.array_equal(before, plain.layers[0].kernel)


def test_the_gradient_is_the_sum_over_the_layers():
    weights = [np.full((2, 2), v, "float32") for v in (1.0, 3.0)]
    share = dlopt.Share(scale=True)
    states = share.init_group([Target("a"), Target("b")], weights)
    np.testing.assert_allclose([s["scale"].value for s in states], [0.5, 1.5])
    assert states[0]["shared"] is states[1]["shared"]
    shared = tf.constant(states[0]["shared"].value)
    slopes = [tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.ones((2, 2))]
    with tf.GradientTape() as tape:
        tape.watch(shared)
        loss = 0.0
        for weight, state, slope in zip(weights, states, slopes, strict=True):
            own = {"shared": shared, "scale": tf.constant(state["scale"].value)}
            y = share.apply(tf.constant(weight), own, Context(None))
            loss += tf.reduce_sum(y * slope)
    np.testing.assert_allclose(
        tape.gradient(loss, shared), 0.5 * slopes[0] + 1.5 * slopes[1]
    )


def test_a_factor_a_layer_fits_at_the_start():
    model, tied = _net(), _tied(scale=True)
    plain = dlopt.finalize(tied)
    mean = np.mean([la.kernel.numpy() for la in model.layers[:3]], axis=0)
    for old, new in zip(model.layers[:3], plain.layers[:3], strict=True):
        scale = np.sum(mean * old.kernel.numpy()) / np.sum(mean**2)
        np.testing.assert_allclose(new.kernel, scale * mean, atol=1e-6)


def test_share_survives_saving(tmp_path):
    tied = _tied(scale=True)
    tied.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    x = np.ones((2, 6), "float32")
    np.testing.assert_array_equal(tied.predict_on_batch(x), again.predict_on_batch(x))
    assert len(again.trainable_variables) == len(tied.trainable_variables)


def test_a_hash_is_even_and_fixed():
    index = hashed((100, 80), 50, seed=3)
    counts = np.bincount(index.ravel(), minlength=100)
    # 8000 draws over 100 places: 80 each, with a deviation of 9.
    assert counts.min() > 40
    assert counts.max() < 120
    np.testing.assert_array_equal(index, hashed((100, 80), 50, seed=3))
    assert (index != hashed((100, 80), 50, seed=4)).mean() > 0.9
    assert hashed((4,), 3, seed=0).tolist() == hashed((5,), 3, seed=0).tolist()[:4]


@pytest.mark.parametrize("signs", [True, False])
def test_hashed_weights_are_signed_buckets(signs):
    weight = np.random.default_rng(0).normal(size=(40, 30)).astype("float32")
    transform = dlopt.HashedWeights(1 / 8, signs=signs, seed=5)
    state = {k: s.value for k, s in transform.init(Target("k"), weight).items()}
    assert state["buckets"].shape == (150,)
    value, hint = transform.finalize(Target("k"), weight, state)
    np.testing.assert_array_equal(hint.values[hint.indices], value)
    np.testing.assert_array_equal(transform.evaluate(Target("k"), weight, state), value)
    assert len(np.unique(np.abs(value))) <= 150
    assert (value.min() < 0) or not signs
    assert value.std() == pytest.approx(weight.std(), rel=0.25)
    for i, j in ((0, 0), (7, 21)):
        k = int(hashed(weight.shape, 150, seed=5)[i, j])
        sign = -1 if signs and k >= 150 else 1
        assert value[i, j] == sign * state["buckets"][k % 150]


def test_hashed_weights_train():
    model = dlopt.transform(
        _net(), dlopt.Recipe([(dlopt.named("kernel"), dlopt.HashedWeights(0.25))])
    )
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    model.fit(x, np.ones((8, 2)), verbose=0)
    kernel = dlopt.finalize(model).layers[0].kernel.numpy()
    assert len(np.unique(np.abs(kernel))) <= 9


def test_what_is_refused():
    model = keras.Sequential([keras.Input((6,)), L.Dense(4), L.Dense(2)])
    with pytest.raises(ConfigError, match="Share ties weights of one shape"):
        dlopt.transform(model, dlopt.Recipe([(dlopt.named("kernel"), dlopt.Share())]))
    with pytest.raises(
        ConfigError, match="ratio must be a number in .0, 1.\\. Received"
    ):
        dlopt.HashedWeights(1.0)
    with pytest.raises(ConfigError, match="seed must be a whole number, 0 or greater"):
        dlopt.HashedWeights(0.5, seed=-1)
