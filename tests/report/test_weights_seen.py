"""Sparsity of a transformed model, and of one that Keras has quantized."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt.graph.targets import weight_targets


@pytest.mark.parametrize("by_hand", [False, True])
def test_sparsity_is_that_of_the_weights_that_are_seen(by_hand):
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.8))])
    dense = layers.Dense(50)
    if by_hand:
        dense = dlopt.TransformedLayer(dense, recipe)
    small = keras.Sequential([keras.Input((8,)), dense])
    if not by_hand:
        small = dlopt.transform(small, recipe)
    plain = dlopt.finalize(small)
    assert dlopt.report.sparsity(small) == dlopt.report.sparsity(plain)
    assert dlopt.report.sparsity(plain) == pytest.approx(0.8)


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_scales_are_no_weights(mode):
    parts = [layers.Embedding(20, 4, name="e"), layers.Flatten()]
    inputs = keras.Input((6,), dtype="int32") if mode != "float8" else keras.Input((6,))
    net = keras.Sequential(
        [inputs, *(parts if mode != "float8" else []), layers.Dense(4, name="d")]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers that have nothing to quantize
        net.quantize(mode)
    names = [t.path for t in weight_targets(net)]
    assert names == (["d/kernel", "d/bias"] if mode == "float8" else ["d/bias"])
    assert any("scale" in v.name for v in net.variables)
    recipe = dlopt.Recipe([(dlopt.rank(1, 2), dlopt.Prune(0.5))])
    # The config of a float8 model makes its variables in another order.
    copy = mode != "float8"
    small = dlopt.transform(net, recipe, copy=copy)
    x = np.ones((2, 6), "int32" if mode != "float8" else "float32")
    assert np.isfinite(dlopt.finalize(small, copy=copy)(x)).all()
