"""Weights are computed whatever stands around a call, or the call is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_dlopt as dlopt
from keras_dlopt.errors import ModelError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4)).astype("float32")
RECIPE = dlopt.Recipe([(dlopt.named("kernel"), dlopt.FakeQuant(bits=4))])


class Plain(keras.Model):
    """A dense layer, normalization, dropout and a condition on a tensor."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4, activation="relu")
        self.norm = layers.BatchNormalization()
        self.drop = layers.Dropout(0.5, seed=1)

    def call(self, x, training=None):
        x = self.dense(x)
        if tf.reduce_sum(x) > -1e9:
            x = 2 * x
        return self.drop(self.norm(x, training=training), training=training)


class Traced(Plain):
    call = tf.function(Plain.call)


class TracedLayer(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def build(self, input_shape):
        self.dense.build(input_shape)

    @tf.function
    def call(self, x):
        return self.dense(x)


def _transformed(build, recipe=RECIPE):
    keras.utils.set_random_seed(0)
    model = build()
    if not model.built:
        model(X)
    return dlopt.transform(model, recipe, copy=False)


def _gradients(small):
    with tf.GradientTape() as tape:
        loss = ops.sum(ops.square(small(X, training=True)))
    return loss, tape.gradient(loss, [v.value for v in small.trainable_variables])


def test_a_traced_call_is_the_plain_one():
    plain, traced = _transformed(Plain), _transformed(Traced)
    for _ in range(2):  # weights, moving averages and seeds move in between
        ours, theirs = _gradients(traced), _gradients(plain)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
        for one, other in zip(ours[1], theirs[1], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        for small in (plain, traced):
            kernel = small.trainable_variables[0]
            kernel.assign(kernel * 0.5)
    compiled = tf.function(lambda x: traced(x, training=False))
    for _ in range(2):
        traced.model.dense.kernel.assign(traced.model.dense.kernel * 0.5)
        np.testing.assert_allclose(compiled(X), traced(X), rtol=1e-5, atol=1e-6)
        finalized = dlopt.finalize(traced)
        np.testing.assert_allclose(
            finalized(X, training=False), traced(X), rtol=1e-5, atol=1e-6
        )


class Deferred(keras.Model):
    """Traced, and built by a symbolic call, in which its weights have no values."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.drop = layers.Dense(2), layers.Dropout(0.9, seed=1)

    @tf.function
    def call(self, x, training=None):
        if training:
            x = 0 * x + 1
        if tf.reduce_sum(x) > -1e9:
            x = 2 * x
        return self.drop(self.dense(x), training=training)


@pytest.mark.parametrize("nested", [False, True])
def test_a_traced_model_is_copied_with_its_weights(nested):
    net = Deferred()
    net(X)
    model = keras.Sequential([keras.Input((4,)), net]) if nested else net
    small = dlopt.transform(model, RECIPE)
    assert not np.allclose(small(X, training=True), small(X))
    plain = dlopt.finalize(small)
    inner = plain.layers[-1] if nested else plain
    expected = 2 * X @ inner.dense.kernel.numpy() + inner.dense.bias.numpy()
    np.testing.assert_allclose(plain(X), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(small(X), expected, rtol=1e-5, atol=1e-6)
    assert hasattr(vars(Deferred)["call"], "python_function")


def test_a_traced_layer_and_a_traced_instance():
    def nested():
        return keras.Sequential([keras.Input((4,)), TracedLayer(), layers.Dense(2)])

    def instance():
        dense = layers.Dense(4)
        model = keras.Sequential([keras.Input((4,)), dense])
        dense.call = tf.function(dense.call)
        return model

    for build in (nested, instance):
        small = _transformed(build)
        for _ in range(2):
            _, gradients = _gradients(small)
            assert all(g is not None and np.abs(g).sum() > 0 for g in gradients)
            kernel = small.trainable_variables[0]
            kernel.assign(kernel * 0.5)
            if build is nested:
                np.testing.assert_allclose(
                    small(X), dlopt.finalize(small)(X), rtol=1e-6
                )


@pytest.mark.parametrize("mode", ["full", "activations", "list_of_layers"])
def test_recomputed_activations_have_the_plain_gradients(mode):
    def build(scope):
        def made():
            with scope():
                return keras.Sequential(
                    [
                        keras.Input((4,)),
                        layers.Dense(4, activation="relu", name="a"),
                        layers.Dense(2, name="b"),
                    ]
                )

        return made

    def remat():
        names = ["a"] if mode == "list_of_layers" else None
        return keras.RematScope(mode=mode, layer_names=names)

    outside = keras.name_scope
    plain = _gradients(_transformed(build(lambda: outside("x"))))[1]
    ours = _gradients(_transformed(build(remat)))[1]
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


class Recomputing(layers.Layer):
    def __init__(self, around, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.around = layers.Dense(4), around

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        return self.around(lambda x: self.dense(x))(x)


@tf.custom_gradient
def _identity(x):
    return x, lambda g: g


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    ("around", "name"),
    [
        (tf.recompute_grad, "tf.recompute_grad, keras.remat"),
        (keras.remat, "tf.recompute_grad, keras.remat"),
        (tf.function, "tf.function"),
    ],
)
def test_what_would_keep_a_weight_is_refused(around, name, graph):
    small = _transformed(
        lambda: keras.Sequential([keras.Input((4,)), Recomputing(around)])
    )
    run = tf.function(_gradients) if graph else _gradients
    with pytest.raises(ModelError, match=f"computed .* inside {name}.*Take that"):
        run(small)
    # The advice: leave the variable out of the recipe.
    free = _transformed(
        lambda: keras.Sequential(
            [keras.Input((4,)), Recomputing(around), layers.Dense(2, name="head")]
        ),
        dlopt.Recipe([(dlopt.at("head/kernel"), dlopt.FakeQuant(bits=4))]),
    )
    _, gradients = _gradients(free)
    assert all(g is not None for g in gradients)


def test_what_keeps_nothing_is_let_through():
    class Fine(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(4)

        def build(self, input_shape):
            self.dense.build(input_shape)

        def call(self, x):
            rows = tf.vectorized_map(lambda row: self.dense(row[None])[0], x)
            rows += tf.map_fn(lambda row: self.dense(row[None])[0], x)
            return rows + _identity(self.dense(x)) + _identity(self.dense.bias)

    small = _transformed(lambda: keras.Sequential([keras.Input((4,)), Fine()]))
    expected = 3 * dlopt.finalize(small).layers[0].dense(X)
    np.testing.assert_allclose(
        small(X), expected + small.model.layers[0].dense.bias, rtol=1e-5
    )
    assert all(g is not None for g in _gradients(small)[1])


class Rowwise(layers.Layer):
    """A dense layer, one row at a time."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        return tf.vectorized_map(lambda row: self.dense(row[None])[0], x)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kind", ["rows", 1, 2, 3])
def test_small_weights_in_functions_of_keras_and_tensorflow_have_gradients(kind, graph):
    # A CPU has grouped convolutions by a function under XLA only; rows are mapped by
    # one as well. What is computed at once would be a constant in there.
    def build():
        if kind == "rows":
            return keras.Sequential([keras.Input((4,)), Rowwise()])
        conv = [layers.Conv1D, layers.Conv2D, layers.Conv3D][kind - 1]
        shape = (3,) * kind + (4,)
        return keras.Sequential([keras.Input(shape), conv(4, 2, groups=2)])

    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    small = _transformed(build, recipe)
    x = X if kind == "rows" else RNG.normal(size=(2, *(3,) * kind, 4))

    def gradients(model):
        with tf.GradientTape() as tape:
            loss = ops.sum(ops.square(model(x, training=True)))
        return loss, tape.gradient(loss, [v.value for v in model.trainable_variables])

    run = tf.function(lambda: gradients(small)) if graph else lambda: gradients(small)
    for _ in range(2):
        plain = dlopt.finalize(small)
        kept = plain.trainable_variables[0].numpy() != 0
        loss, ours = run()
        expected, theirs = gradients(plain)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        np.testing.assert_allclose(ours[0], theirs[0] * kept, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5, atol=1e-5)
        small.trainable_variables[0].assign(small.trainable_variables[0] * 0.7)


def test_layers_that_write_their_own_weight_are_refused():
    net = keras.Sequential(
        [
            keras.Input((4,)),
            layers.SpectralNormalization(layers.Dense(4)),
            layers.Dense(2, name="head"),
        ]
    )
    with pytest.raises(ModelError, match="a SpectralNormalization, assigns the weight"):
        dlopt.transform(net, RECIPE)
    free = dlopt.named("kernel") & ~dlopt.inside(layers.SpectralNormalization)
    small = dlopt.transform(net, dlopt.Recipe([(free, dlopt.FakeQuant(bits=4))]))
    small.compile("sgd", "mse", run_eagerly=True)
    assert np.isfinite(small.train_on_batch(X, X[:, :2]))


@pytest.mark.parametrize("kind", ["model", "layer", "nested"])
@pytest.mark.parametrize(
    "transform", [dlopt.Prune(0.9), dlopt.Cluster(2), dlopt.FakeQuant(bits=2)]
)
def test_regularizers_see_what_the_layers_see(kind, transform):
    recipe = dlopt.Recipe([(dlopt.named("kernel"), transform)])
    l2 = keras.regularizers.L2(0.1)
    dense = layers.Dense(8, kernel_regularizer=l2, bias_regularizer=l2)
    dense.build((None, 4))
    dense.bias.assign(np.ones(8))
    if kind == "layer":
        dense = dlopt.TransformedLayer(dense, recipe)
    small = keras.Sequential([keras.Input((4,)), dense])
    if kind != "layer":
        small = dlopt.transform(small, recipe)
    if kind == "nested":
        inputs = keras.Input((4,))
        small = keras.Model(inputs, small(inputs))
    plain = dlopt.finalize(small)
    kernel = plain.weights[0].numpy()
    losses = [float(sum(model.losses)) for model in (small, plain)]
    assert losses == pytest.approx([0.1 * ((kernel**2).sum() + 8)] * 2, rel=1e-5)
    with tf.GradientTape() as tape:
        loss = sum(small.losses)
    variable = next(v for v in small.trainable_variables if v.name == "kernel")
    gradient = np.asarray(tape.gradient(loss, variable.value))
    if isinstance(transform, dlopt.Prune):  # what is removed is not regularized
        np.testing.assert_allclose(gradient, 0.2 * kernel, rtol=1e-5)


def test_a_model_that_was_lent_gets_its_regularizers_back():
    l2 = keras.regularizers.L2(0.1)
    net = keras.Sequential([keras.Input((4,)), layers.Dense(4, kernel_regularizer=l2)])
    kernel = net.layers[0].kernel
    small = dlopt.transform(net, RECIPE, copy=False)
    small = dlopt.TransformedModel(net, RECIPE)  # once more: it stands there once
    assert kernel.regularizer is not l2
    dlopt.finalize(small, copy=False)
    assert kernel.regularizer is net.layers[0].kernel_regularizer


def test_checkpoints_hold_the_state_of_transforms(tmp_path):
    def build():
        return keras.Sequential([keras.Input((4,)), layers.Dense(4)])

    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    small, again = _transformed(build, recipe), _transformed(build, recipe)
    for variable in again.variables:
        variable.assign(ops.zeros_like(variable))
    path = tf.train.Checkpoint(model=small).write(str(tmp_path / "saved"))
    tf.train.Checkpoint(model=again).read(path).assert_consumed()
    for one, other in zip(small.variables, again.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
