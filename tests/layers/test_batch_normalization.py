import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dlopt import layers
from keras_dlopt.errors import ModelError

POLICIES = ["float32", "mixed_bfloat16", "mixed_float16"]
# One unit in the last place of the type that the output is rounded to.
ULP = {"float32": 2e-6, "mixed_bfloat16": 8e-3, "mixed_float16": 1e-3}


def _x(*shape, seed=0):
    return np.random.default_rng(seed).normal(1.0, 2.0, size=shape).astype("float32")


def _results(cls, policy, x, *, jit=False, **config):
    """Outputs, gradients and moving statistics of one training step, then inference."""
    layer = cls(dtype=policy, **config)
    x = tf.cast(x, layer.compute_dtype)
    layer.build(x.shape)

    @tf.function(jit_compile=jit)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            value = tf.reduce_sum(tf.cast(y, "float32") ** 3)
        sources = [x, *(v.value for v in layer.trainable_variables)]
        return [y, *tape.gradient(value, sources)]

    values = [*step(x), layer.moving_mean, layer.moving_variance, layer(x)]
    return [tf.convert_to_tensor(v) for v in values], step, x


def _is_fused(step, x):
    ops = step.get_concrete_function(x).graph.get_operations()
    return "FusedBatchNormV3" in {op.type for op in ops}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_equal_to_keras_forward_backward_and_moving_statistics(policy, jit):
    x = _x(8, 5, 5, 6)
    ours, step, cast = _results(layers.BatchNormalization, policy, x, jit=jit)
    theirs, _, _ = _results(keras.layers.BatchNormalization, policy, x, jit=jit)
    assert _is_fused(step, cast)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, float), np.asarray(b, float)
        np.testing.assert_allclose(a, b, rtol=0, atol=ULP[policy] * np.abs(b).max())


@pytest.mark.parametrize(
    "config",
    [
        {"scale": False},
        {"center": False},
        {"scale": False, "center": False},
        {"momentum": 0.5, "epsilon": 1.001e-5},
    ],
)
def test_equal_to_keras_under_other_arguments(config):
    x = _x(4, 3, 3, 5)
    ours, step, cast = _results(layers.BatchNormalization, "float32", x, **config)
    theirs, _, _ = _results(keras.layers.BatchNormalization, "float32", x, **config)
    assert _is_fused(step, cast)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * np.abs(b).max())


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({"epsilon": 1e-6}, (4, 3, 3, 5)),
        ({"axis": 1}, (4, 3, 3, 5)),
        ({"renorm": True}, (4, 3, 3, 5)),
        ({"synchronized": True}, (4, 3, 3, 5)),
        ({}, (4, 5)),
        ({}, (4, 6, 5)),
        ({"dtype": "float64"}, (4, 3, 3, 5)),
    ],
)
def test_gives_way_where_the_op_does_not_apply(config, shape):
    policy = config.pop("dtype", "float32")
    x = _x(*shape)
    ours, step, cast = _results(layers.BatchNormalization, policy, x, **config)
    theirs, _, _ = _results(keras.layers.BatchNormalization, policy, x, **config)
    assert not _is_fused(step, cast)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_masked_examples_give_way_too():
    x, mask = _x(4, 3, 3, 5), np.ones((4, 3, 3), bool)
    mask[0] = False
    ours, theirs = layers.BatchNormalization(), keras.layers.BatchNormalization()
    np.testing.assert_array_equal(
        ours(x, training=True, mask=mask), theirs(x, training=True, mask=mask)
    )


def test_frozen_layers_use_the_moving_statistics():
    layer = layers.BatchNormalization()
    x = _x(4, 3, 3, 5)
    layer(x)
    layer.trainable = False
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(5))


def _model():
    inputs = keras.Input((6, 6, 2))
    inner = keras.Sequential(
        [keras.layers.Conv2D(3, 3), keras.layers.BatchNormalization(name="inner")]
    )
    x = keras.layers.BatchNormalization(name="outer")(inner(inputs))
    x = keras.layers.TimeDistributed(keras.layers.BatchNormalization(name="wrapped"))(x)
    x = keras.layers.Flatten()(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def test_use_fused_keeps_names_weights_numbers_and_training(tmp_path):
    x, y = _x(16, 6, 6, 2), np.arange(16) % 3
    keras.utils.set_random_seed(3)
    model = _model()
    keras.utils.set_random_seed(3)
    other = _model()
    for m in (model, other):  # trace the old ops first
        m.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    paths = [v.path for v in model.weights]
    assert layers.use_fused(model) is model
    assert [v.path for v in model.weights] == paths
    fused = [
        layer
        for layer in (*model.layers, *model.layers[1].layers)
        if isinstance(layer, layers.BatchNormalization)
    ]
    assert {layer.name for layer in fused} == {"inner", "outer"}
    assert isinstance(model.layers[3].layer, layers.BatchNormalization)
    a = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    b = other.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    for v, w in zip(model.weights, other.weights, strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(
        again.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    assert type(again.get_layer("outer")) is layers.BatchNormalization


def test_use_fused_reaches_subclassed_models_and_leaves_subclasses_alone():
    class Own(keras.layers.BatchNormalization):
        pass

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = {"a": [keras.layers.BatchNormalization()], "b": Own()}

        def call(self, x):
            return self.parts["b"](self.parts["a"][0](x))

    net = layers.use_fused(Net())
    assert type(net.parts["a"][0]) is layers.BatchNormalization
    assert type(net.parts["b"]) is Own
    assert net(_x(2, 3, 3, 2)).shape == (2, 3, 3, 2)


def test_use_fused_of_something_else():
    with pytest.raises(ModelError, match=r"takes a Keras model. Received: Dense"):
        layers.use_fused(keras.layers.Dense(3))
