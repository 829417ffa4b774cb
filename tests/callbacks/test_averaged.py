"""AveragedWeights: what sees the averages, and that training does not notice."""

import keras
import numpy as np
import pytest

from keras_dlopt import optimizers
from keras_dlopt.callbacks import AveragedWeights
from keras_dlopt.errors import ConfigError

X = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
Y = X[:, :1] * 2

OPTIMIZERS = {
    "ema": lambda: optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9),
    "keras": lambda: keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9),
    "free": lambda: optimizers.ScheduleFree(optimizers.SGD(0.05)),
}


def _model(optimizer):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer, "mse")
    return model


def _fit(model, *callbacks):
    options = {"batch_size": 8, "epochs": 3, "shuffle": False, "verbose": 0}
    data = {"validation_data": (X, Y), "callbacks": list(callbacks)}
    return model.fit(X, Y, **options, **data).history


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_validation_and_files_hold_the_averages(name, tmp_path):
    plain, averaged = _model(OPTIMIZERS[name]()), _model(OPTIMIZERS[name]())
    before = _fit(plain)
    saver = keras.callbacks.ModelCheckpoint(tmp_path / "m.keras")
    history = _fit(averaged, AveragedWeights(), saver)
    assert history["loss"] == before["loss"]  # training is the same, to the bit
    for a, b in zip(averaged.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    after = averaged.evaluate(X, Y, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(after, rel=1e-5)
    assert before["val_loss"][-1] != pytest.approx(after, rel=1e-3)
    saved = keras.saving.load_model(tmp_path / "m.keras")
    assert saved.evaluate(X, Y, verbose=0) == pytest.approx(after, rel=1e-5)
    assert "finalize_variable_values" not in vars(averaged.optimizer)


def test_statistics_are_those_of_the_averages():
    model = _model(OPTIMIZERS["ema"]())
    _fit(model, AveragedWeights(statistics_from=[X[:16], X[16:]]))
    norm, hidden = model.layers[1], model.layers[0](X).numpy()
    np.testing.assert_allclose(norm.moving_mean.numpy(), hidden.mean(0), atol=1e-6)
    halves = np.mean([hidden[:16].var(0), hidden[16:].var(0)], axis=0)
    np.testing.assert_allclose(norm.moving_variance.numpy(), halves, rtol=1e-5)
    assert norm.momentum == 0.99


def test_an_optimizer_without_averages_is_refused():
    with pytest.raises(ConfigError, match="SGD keeps no averaged weights.*use_ema"):
        _fit(_model(keras.optimizers.SGD(0.1)), AveragedWeights())
