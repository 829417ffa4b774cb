import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms import Context
from keras_dlopt.transforms.cluster import initial_centroids, kmeans


@pytest.mark.parametrize("method", ["linear", "kmeans++"])
def test_kmeans_equals_scikit_learn_from_the_same_start(method):
    values = np.sort(np.random.default_rng(0).normal(size=2000))
    start = initial_centroids(values, 8, method=method, seed=3)
    ours = kmeans(values, start, steps=300)
    theirs = KMeans(8, init=start[:, None], n_init=1, max_iter=300, tol=0).fit(
        values[:, None]
    )
    np.testing.assert_allclose(
        ours, np.sort(theirs.cluster_centers_.ravel()), rtol=1e-9
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), min_size=1, max_size=40),
    st.integers(2, 8),
    st.sampled_from(["linear", "kmeans++"]),
    st.booleans(),
)
def test_each_weight_gets_its_nearest_centroid_and_zeros_stay(weights, k, method, keep):
    weight = np.array(weights, "float32")
    transform = dlopt.Cluster(k, initial=method, preserve_zeros=keep)
    state = {name: s.value for name, s in transform.init(None, weight).items()}
    value, hint = transform.finalize(None, weight, state)
    np.testing.assert_array_equal(hint.values[hint.indices], value)
    np.testing.assert_array_equal(transform.evaluate(None, weight, state), value)
    if keep:
        assert np.all(value[weight == 0] == 0)
        assert np.all(state["index"][weight == 0] == 0)
        assert np.all(state["index"][weight != 0] > 0)
    used = weight != 0 if keep else np.ones(weight.shape, bool)
    nearest = np.abs(weight[used, None] - state["centroids"][None]).min(1)
    np.testing.assert_allclose(np.abs(weight - value)[used], nearest, atol=1e-6)


def test_the_gradient_of_a_centroid_is_the_sum_over_its_weights():
    weight = np.array([[0.0, 1.0, 1.2], [5.0, 5.2, 0.0]], "float32")
    transform = dlopt.Cluster(2)
    state = {k: tf.constant(s.value) for k, s in transform.init(None, weight).items()}
    slope = tf.constant([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    with tf.GradientTape() as tape:
        tape.watch(state["centroids"])
        y = transform.apply(tf.constant(weight), state, Context(None))
        loss = tf.reduce_sum(y * slope)
    gradient = tf.convert_to_tensor(tape.gradient(loss, state["centroids"]))
    np.testing.assert_array_equal(gradient, [5.0, 30.0])


def test_begin_clusters_what_pruning_left():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16)])
    schedule = dlopt.schedules.PolynomialSparsity(0.75, end=4, frequency=2)
    chain = dlopt.Prune(schedule) >> dlopt.Cluster(4, begin=6)
    small = dlopt.transform(model, dlopt.Recipe([(dlopt.named("kernel"), chain)]))
    small.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
    y = np.zeros((32, 16), "float32")
    with pytest.warns(UserWarning, match="clustering begins at step 6"):
        dlopt.finalize(_fitted(small, x[:20], y[:20]))
    small.fit(x[:12], y[:12], batch_size=4, verbose=0)
    kernel = dlopt.finalize(small).layers[0].kernel.numpy()
    assert (kernel == 0).sum() == 96
    assert len(np.unique(kernel[kernel != 0])) <= 4


def _fitted(small, x, y):
    small.fit(x, y, batch_size=4, verbose=0)
    return small


def test_bad_arguments():
    with pytest.raises(ConfigError, match="at least 2. Received: 1"):
        dlopt.Cluster(1)
    with pytest.raises(ConfigError, match="begin must be a training step"):
        dlopt.Cluster(4, begin=-1)
    with pytest.raises(ConfigError, match="'linear' or 'kmeans"):
        dlopt.Cluster(4, initial="magic")
