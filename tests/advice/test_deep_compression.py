"""What the named call advises, followed."""

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 6)).astype("float32")
Y = X.argmax(1).astype("int32") % 3


@pytest.mark.advice("auto/deep.py", "Give ratio or max_bytes, not both.")
def test_one_size(told):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(24, "relu"), keras.layers.Dense(3)]
    net = keras.Sequential([keras.Input((6,)), *layers])
    for layer in net.layers:  # as trained: zeros would cost nothing
        layer.bias.assign(RNG.normal(size=layer.bias.shape) / 10)
    with told():
        dlopt.deep_compression(net, (X, Y), ratio=1.1, max_bytes=900, epochs=1)
    assert dlopt.deep_compression(net, (X, Y), ratio=1.1, epochs=1).ratio > 1.1
