"""A transformed model has its parent's face: inputs, layers, features, export."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt.errors import ModelError

X = np.random.default_rng(0).normal(size=(2, 6, 6, 1)).astype("float32")
RECIPE = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])


def _sequential():
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, name="conv"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="head"),
        ]
    )


def _functional():
    inputs = keras.Input((6, 6, 1), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = layers.Flatten(name="flat")(x + 2 * inputs)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


@pytest.mark.parametrize("build", [_sequential, _functional])
def test_shapes_layers_and_features_are_the_parents(build, tmp_path, capsys):
    model = build()
    small = dlopt.transform(model, RECIPE)
    plain = dlopt.finalize(small)
    assert small.input_shape == model.input_shape
    assert small.output_shape == model.output_shape
    assert [t.shape for t in small.inputs] == [t.shape for t in model.inputs]
    assert small.count_params() == model.count_params()
    conv = small.get_layer("conv")
    assert isinstance(conv, layers.Conv2D)
    assert conv.kernel is small.model.get_layer("conv").kernel
    for name in ("conv", "flat", "head"):
        ours = keras.Model(small.inputs, small.get_layer(name).output)
        theirs = keras.Model(plain.inputs, plain.get_layer(name).output)
        np.testing.assert_allclose(ours([X]), theirs([X]), rtol=1e-6)
    np.testing.assert_allclose(conv(X), plain.get_layer("conv")(X), rtol=1e-6)
    small.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    served = loaded.serve(X)
    np.testing.assert_allclose(served, plain(X), rtol=1e-5, atol=1e-6)
    small.summary()
    assert "conv" in capsys.readouterr().out
    conv.trainable = False
    assert not small.model.get_layer("conv").trainable


def test_what_would_lose_the_transforms_is_refused(tmp_path):
    inputs = keras.Input((6, 6, 1))
    block = keras.Sequential([inputs, layers.Conv2D(2, 3, name="conv")], name="block")
    small = dlopt.transform(keras.Sequential([inputs, block]), RECIPE)
    with pytest.raises(ModelError, match="'block', a model inside a transformed one"):
        _ = small.get_layer("block").inputs
    features = keras.Model(small.inputs, small.get_layer("block").output)
    with pytest.raises(ModelError, match="'block' is a part of a transformed model"):
        features.save(tmp_path / "features.keras")
    with pytest.raises(ModelError, match=r"quantize\(\) would replace.*finalize"):
        small.quantize("int8")
    dlopt.finalize(small).save(tmp_path / "plain.keras")
    with pytest.raises(AttributeError, match="TransformedModel has no attribute 'no'"):
        _ = small.no


def test_a_subclassed_model_has_no_inputs_and_is_exported(tmp_path):
    class Net(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(2, name="dense")

        def call(self, x):
            return self.dense(x)

    net = Net()
    x = X[:, 0, :, 0]
    net(x)
    small = dlopt.transform(net, RECIPE)
    assert small.get_layer("dense") is small.model.dense
    with pytest.raises(AttributeError):
        _ = small.inputs
    small.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    served = loaded.serve(x)
    np.testing.assert_allclose(served, small(x), rtol=1e-5, atol=1e-6)
