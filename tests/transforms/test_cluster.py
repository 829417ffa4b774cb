import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import Target
from keras_dlopt.transforms import Context, Member
from keras_dlopt.transforms.cluster import Start, kmeans, start_of
from keras_dlopt.transforms.cluster import nearest as found_nearest
from keras_dlopt.transforms.lookup import lookup, without_gradient
from reference.cluster import lloyd, nearest

STARTS = ["linear", "density", "kmeans++", "random"]


def _state(transform, weight, target=None):
    return {name: s.value for name, s in transform.init(target, weight).items()}


@pytest.mark.parametrize("name", STARTS)
def test_kmeans_equals_scikit_learn_from_the_same_start(name):
    values = np.sort(np.random.default_rng(0).normal(size=2000))
    start = start_of(name)(values, 8, seed=3)
    assert np.all(np.diff(start) >= 0)
    ours = kmeans(values, start, steps=300)
    theirs = KMeans(8, init=start[:, None], n_init=1, max_iter=300, tol=0).fit(
        values[:, None]
    )
    np.testing.assert_allclose(
        ours, np.sort(theirs.cluster_centers_.ravel()), rtol=1e-9
    )
    few = kmeans(values[::20], start, steps=3)
    np.testing.assert_allclose(few, lloyd(values[::20], start, steps=3), rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), min_size=1, max_size=40),
    st.integers(2, 8),
    st.sampled_from(STARTS),
    st.booleans(),
    st.booleans(),
)
def test_each_weight_gets_its_nearest_centroid_and_zeros_stay(
    weights, k, start, keep, split
):
    weight = np.array(weights, "float32")
    transform = dlopt.Cluster(k, initial=start, preserve_zeros=keep, split_signs=split)
    state = _state(transform, weight)
    value, hint = transform.finalize(None, weight, state)
    np.testing.assert_array_equal(hint.values[hint.indices], value)
    np.testing.assert_array_equal(transform.evaluate(None, weight, state), value)
    assert state["centroids"].shape == (k,)
    if keep:
        assert np.all(value[weight == 0] == 0)
        assert np.all(state["index"][weight == 0] == 0)
        assert np.all(state["index"][weight != 0] > 0)
    used = weight != 0 if keep else np.ones(weight.shape, bool)
    best = np.abs(weight[used, None] - state["centroids"][None]).min(1, initial=np.inf)
    np.testing.assert_allclose(np.abs(weight - value)[used], best, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=20),
    st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=6, unique=True),
)
def test_search_finds_the_nearest_of_unsorted_centroids(values, centroids):
    values, centroids = np.array(values), np.array(centroids)
    ours, theirs = found_nearest(values, centroids), nearest(values, centroids)
    np.testing.assert_allclose(
        np.abs(values - centroids[ours]), np.abs(values - centroids[theirs]), atol=1e-12
    )


def test_per_channel_clusters_each_output_channel_alone():
    weight = np.random.default_rng(1).normal(size=(3, 3, 2, 4)).astype("float32")
    layer = keras.layers.Conv2D(4, 3)
    target = Target("conv/kernel", layer=layer)
    each = dlopt.Cluster(3, per_channel=True)
    value, hint = each.finalize(target, weight, _state(each, weight, target))
    one = dlopt.Cluster(3)
    for c in range(4):
        alone = one.finalize(None, weight[..., c], _state(one, weight[..., c]))[0]
        np.testing.assert_array_equal(value[..., c], alone)
    assert hint.values.size == 13


def _gradients(transform, weight, slope, state=None):
    state = state or _state(transform, weight)
    state = {k: tf.constant(v) for k, v in state.items()}
    weight = tf.constant(weight)
    with tf.GradientTape() as tape:
        tape.watch([weight, state["centroids"]])
        y = transform.apply(weight, state, Context(None))
        loss = tf.reduce_sum(y * slope)
    return [
        tf.convert_to_tensor(g).numpy()
        for g in tape.gradient(loss, [weight, state["centroids"]])
    ]


WEIGHT = np.array([[0.0, 1.0, 1.2], [5.0, 5.2, 0.0]], "float32")
SLOPE = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], "float32")


@pytest.mark.parametrize(
    ("options", "to_weight", "to_centroids"),
    [
        ({}, 0 * SLOPE, [5, 30]),
        ({"gradient": "mean"}, 0 * SLOPE, [2.5, 15]),
        ({"reassign": 1}, SLOPE, [5, 30]),
        ({"preserve_zeros": False}, 0 * SLOPE, [36, 30]),
    ],
)
def test_where_gradients_go(options, to_weight, to_centroids):
    found = _gradients(dlopt.Cluster(2, **options), WEIGHT, SLOPE)
    np.testing.assert_array_equal(found[0], to_weight)
    np.testing.assert_array_equal(found[1], to_centroids)


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("on", [None, 0.0, 1.0])
def test_lookup_is_the_same_inside_and_outside_of_xla(on, through):
    index = tf.constant(np.arange(12).reshape(3, 4) % 5)
    index = tf.cast(index, "int32")
    weight = tf.constant(np.linspace(-1, 1, 12).reshape(3, 4), "float32")
    table = tf.constant([0.5, -1.0, 2.0, 0.25, 3.0])

    def run():
        with tf.GradientTape() as tape:
            tape.watch([weight, table])
            switch = None if on is None else tf.constant(on)
            y = lookup(weight, table, index, on=switch, through=through)
            loss = tf.reduce_sum(y * y * weight)
        return y, *(
            tf.convert_to_tensor(g) for g in tape.gradient(loss, (weight, table))
        )

    for a, b in zip(
        tf.function(run)(), tf.function(run, jit_compile=True)(), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_a_replaced_weight_gets_a_gradient_of_zero():
    weight, value = tf.constant([1.0, 2.0]), tf.constant([3.0, 4.0])

    def run():
        with tf.GradientTape() as tape:
            tape.watch([weight, value])
            loss = tf.reduce_sum(without_gradient(weight, value) ** 2)
        return tape.gradient(loss, [weight, value])

    for jit in (False, True):
        to_weight, to_value = tf.function(run, jit_compile=jit)()
        np.testing.assert_array_equal(to_weight, [0, 0])
        np.testing.assert_array_equal(to_value, [6, 8])


def test_zeros_stay_when_weights_are_assigned_again():
    transform = dlopt.Cluster(2, reassign=5)
    weight = np.array([[-1.0, 0.0, 1.0, 0.0]], "float32")
    state = _state(transform, weight, Target("d/kernel"))
    moved = weight + np.array([[0.0, 0.9, 0.0, -0.3]], "float32")  # by their gradients
    member = Member(Target("d/kernel"), moved, state)
    (changed,) = transform.update([member], 5)
    np.testing.assert_array_equal(changed["index"], state["index"])


def test_reassign_follows_the_trained_weights():
    transform = dlopt.Cluster(2, reassign=5, gradient="mean")
    state = _state(transform, WEIGHT)
    assert [transform.next_due(s) for s in (-1, 0, 4, 5)] == [0, 5, 5, 10]
    # The centroids have passed each other, one weight moved, one was pruned.
    state["centroids"] = np.array([4.0, 1.0], "float32")
    moved = WEIGHT.copy()
    moved[0, 2], moved[1, 0] = 4.5, 0.0
    (change,) = transform.update([Member(None, moved, state)], 5)
    np.testing.assert_array_equal(change["index"], [[0, 2, 1], [0, 1, 0]])
    np.testing.assert_array_equal(change["share"], [0.5, 1.0])


def test_split_signs_shares_points_by_count():
    weight = np.array([-1.0, 1, 2, 3, 4, 5, 6, 7], "float32")
    transform = dlopt.Cluster(4, split_signs=True, iterations=0)
    centroids = _state(transform, weight)["centroids"]
    np.testing.assert_allclose(centroids, np.linspace(1, 7, 4))
    weight[1:4] *= -1
    centroids = _state(transform, weight)["centroids"]
    np.testing.assert_array_equal(centroids, [-3, -1, 4, 7])


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


def test_without_a_schedule_it_finalizes_untrained():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Cluster(3))])
    plain = dlopt.finalize(dlopt.transform(model, recipe))
    assert len(np.unique(plain.layers[0].kernel.numpy())) <= 3


def test_a_start_of_ones_own():
    class Fixed(Start):
        def __call__(self, values, clusters, *, seed):
            return np.arange(clusters, dtype=float)

    state = _state(dlopt.Cluster(3, initial=Fixed(), iterations=0), WEIGHT)
    np.testing.assert_array_equal(state["centroids"], [0, 1, 2])
    with pytest.raises(TypeError, match="Start does not say where k-means starts"):
        Start()(WEIGHT, 2, seed=0)


def test_bad_arguments():
    with pytest.raises(ConfigError, match="a whole number, 2 or greater. Received: 1"):
        dlopt.Cluster(1)
    with pytest.raises(ConfigError, match="begin must be a whole number, 0 or greater"):
        dlopt.Cluster(4, begin=-1)
    with pytest.raises(ConfigError, match="'linear', 'kmeans.*'magic'"):
        dlopt.Cluster(4, initial="magic")
    with pytest.raises(
        ConfigError, match="iterations must be a whole number, 0 or greater"
    ):
        dlopt.Cluster(4, iterations=-1)
    with pytest.raises(
        ConfigError, match="reassign must be a whole number, 1 or greater, or None"
    ):
        dlopt.Cluster(4, reassign=0)
    with pytest.raises(ConfigError, match="gradient must be 'sum' or 'mean'"):
        dlopt.Cluster(4, gradient="median")
