"""BatchNormalization with fixed statistics trains the function that is shipped."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import post_training
from keras_dlopt.callbacks import FreezeBatchNormalization
from keras_dlopt.errors import ConfigError, ModelError


def net():
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([layers.Dense(4), layers.BatchNormalization()])
    return keras.Sequential([keras.Input((3,)), inner, layers.ReLU(), layers.Dense(1)])


DATA = np.random.default_rng(0).normal(2, 3, size=(64, 3)).astype("float32")


class Statistics(keras.callbacks.Callback):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.means, self.gammas = layer, [], []

    def on_epoch_end(self, epoch, logs=None):
        self.means.append(self.layer.moving_mean.numpy())
        self.gammas.append(self.layer.gamma.numpy())


def test_statistics_stay_from_the_epoch_on_and_scales_are_trained():
    model = net()
    small = dlopt.transform(model, dlopt.int8_recipe(model))
    layer = small.model.layers[0].layers[1]
    seen = Statistics(layer)
    small.compile(keras.optimizers.SGD(0.01), "mse")
    freeze = FreezeBatchNormalization(epoch=1)
    small.fit(DATA, DATA[:, :1], epochs=3, verbose=0, callbacks=[freeze, seen])
    assert np.abs(seen.means[0]).max() > 0
    np.testing.assert_array_equal(seen.means[0], seen.means[2])
    assert not np.array_equal(seen.gammas[1], seen.gammas[2])
    # Afterwards the layer learns again.
    small.fit(DATA, DATA[:, :1], epochs=1, verbose=0)
    assert not np.array_equal(layer.moving_mean.numpy(), seen.means[2])


def test_epochs_are_counted_from_zero():
    with pytest.raises(ConfigError, match="counted from 0"):
        FreezeBatchNormalization(epoch=-1)


def test_statistics_are_measured_anew_and_ranges_stay():
    model = net()
    small = post_training.quantize(model, DATA)
    ranges = [s.arrays() for g in small.groups for s in g.slots]
    count = post_training.recalibrate_batch_normalization(small, DATA, batch_size=32)
    assert count == 1
    after = [s.arrays() for g in small.groups for s in g.slots]
    for a, b in zip(ranges, after, strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a)
    _, normalization = small.model.layers[0].layers
    assert normalization.momentum == 0.99
    kernel = dlopt.finalize(small).layers[0].layers[0].kernel.numpy()
    given = np.asarray(DATA @ kernel)
    np.testing.assert_allclose(
        normalization.moving_mean.numpy(), given.mean(0), rtol=0.02, atol=0.02
    )
    halves = (given[:32].var(0) + given[32:].var(0)) / 2
    np.testing.assert_allclose(normalization.moving_variance.numpy(), halves, rtol=0.05)
    bare = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    with pytest.raises(ModelError, match="no BatchNormalization to measure"):
        post_training.recalibrate_batch_normalization(bare, DATA)
