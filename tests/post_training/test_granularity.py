"""One scale for dense kernels: fewer bytes, and taken by itself where it is as good."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_dlopt import FakeQuant, Recipe, export
from keras_dlopt.errors import ConfigError
from keras_dlopt.export.contents import read
from keras_dlopt.post_training import quantize


def network(spread):
    """Dense layers and a convolution; output channels `spread` times apart."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 2))
    y = layers.Flatten()(layers.Conv2D(3, 3, name="conv")(x))
    y = layers.BatchNormalization(name="norm")(layers.Dense(32, name="wide")(y))
    model = keras.Model(x, layers.Dense(4, name="end")(layers.ReLU()(y)))
    gamma = np.geomspace(1, spread, 32).astype("float32")
    model.get_layer("norm").gamma.assign(gamma)
    end = model.get_layer("end").kernel
    end.assign(end / gamma[:, None])
    return model, np.random.default_rng(0).normal(size=(64, 6, 6, 2)).astype("float32")


def scales(small, path):
    """Number of scales of each kernel in the file, largest kernels first."""
    export.litert(small, path)
    kernels = [t for t in read(path).tensors if t.dtype == "INT8" and len(t.shape) > 1]
    constant = [t for t in kernels if t.data is not None and t.data.size > 20]
    constant.sort(key=lambda t: -t.data.size)
    return [len(t.scales) for t in constant]


def sizes(small):
    hints = [hint for _, _, hint in small.final_values()]
    return [np.asarray(h.scale).size for h in hints if hasattr(h, "scale")]


def rms(small, model, x):
    return float(np.sqrt(np.mean((small.predict(x, verbose=0) - model(x)) ** 2)))


def test_dense_kernels_on_one_scale_make_smaller_files(tmp_path):
    model, x = network(1)
    written = {}
    for per_channel in (True, False):
        small = quantize(model, x, per_channel=per_channel, correct_bias=True)
        report = export.litert(small, tmp_path / "net.tflite", data=x)
        assert report.islands == ()
        written[per_channel] = report.size
        assert rms(small, model, x) < 0.02 * np.ptp(model(x))
    # 4 + 4 bytes a channel of 36, and vectors of zero points of two lengths.
    assert written[True] - written[False] >= 8 * 36


def test_the_kernels_that_keep_a_scale_per_channel(tmp_path):
    model, x = network(1)
    path = tmp_path / "net.tflite"
    assert scales(quantize(model, x), path) == [32, 4, 3]
    assert scales(quantize(model, x, per_channel=False), path) == [1, 1, 3]


def test_auto_takes_what_is_as_near(tmp_path):
    path = tmp_path / "net.tflite"
    model, x = network(1)
    assert scales(quantize(model, x, per_channel="auto"), path) == [1, 1, 3]
    model, x = network(1000)
    small = quantize(model, x, per_channel="auto")
    assert scales(small, path) == [32, 4, 3]
    coarse = quantize(model, x, per_channel=False)
    assert rms(coarse, model, x) > 1.1 * rms(small, model, x)


def test_a_subclassed_model_and_one_without_dense():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs)

        def get_config(self):
            return {}

    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    own = Own()
    own(x)
    small = quantize(own, x, per_channel=False, example=x)
    assert sizes(small) == [1]
    conv = keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(3, 2)])
    same = quantize(conv, np.ones((2, 4, 4, 1), "float32"), per_channel="auto")
    assert sizes(same) == [3]


def test_wrong_arguments():
    model, x = network(1)
    with pytest.raises(ConfigError, match=r"True, False or 'auto'. Received: 'tensor'"):
        quantize(model, x, per_channel="tensor")


def test_weights_say_it_themselves(tmp_path):
    model, x = network(1)
    with pytest.raises(ConfigError, match="are given, they say it"):
        quantize(model, x, per_channel="auto", recipe=Recipe([]))
    with pytest.raises(ConfigError, match="are given, they say it"):
        quantize(model, x, per_channel=False, weights=FakeQuant(bits=8))
    small = quantize(model, x, weights=FakeQuant(bits=8, per_channel=False))
    assert scales(small, tmp_path / "net.tflite")[1] == 1
