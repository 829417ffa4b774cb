"""What private training refuses, by name."""

import keras
import numpy as np
import pytest

from keras_dlopt import privacy
from keras_dlopt.errors import ConfigError, DataError, MissingDependencyError

L = keras.layers
X, Y = np.zeros((8, 6), "float32"), np.zeros(8, "int32")


def net():
    return keras.Sequential([keras.Input((6,)), L.Dense(3)])


def private(**given):
    return privacy.private(net(), **{"noise_multiplier": 1.0} | given)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"epsilon": 0}, "epsilon must be a positive number"),
        ({"noise_multiplier": -1}, "noise_multiplier must be a number, 0 or greater"),
        ({"clip": 0}, "clip must be a positive number"),
        ({"delta": 1}, "delta must be a number in (0, 1)"),
        ({"sampling": "poison"}, "Did you mean 'poisson'?"),
        ({"accountant": "gdp"}, "accountant must be 'pld' or 'rdp'"),
        ({"microbatch": 0}, "microbatch must be a whole number, 1 or greater"),
        ({"method": "vmap"}, "method must be one of 'auto', 'ghost', 'vectorized'"),
        ({"seed": -1}, "seed must be a whole number, 0 or greater"),
    ],
)
def test_arguments(given, text):
    with pytest.raises(ConfigError) as caught:
        private(**given)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"batch_size": 9}, "batch_size must be at most the 8 examples. Received: 9."),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be a whole number, 1 or"),
        ({"y": Y[:7]}, "must have as many examples as labels, and some."),
        ({"x": X[:0], "y": Y[:0]}, "must have as many examples as labels, and some."),
    ],
)
def test_arguments_of_fit(given, text):
    model = private()
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises((ConfigError, DataError)) as caught:
        model.fit(**{"x": X, "y": Y, "batch_size": 4} | given, verbose=0)
    assert text in str(caught.value)


def test_a_delta_that_protects_nobody():
    model = private(delta=0.2)
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ConfigError, match="delta must be below 1 / 8, the number of"):
        model.fit(X, Y, 4, verbose=0)


def test_no_loss():
    model = private()
    with pytest.raises(ConfigError, match="needs a loss: .* Received: loss=None."):
        model.compile("sgd")


def test_the_accountant_is_missing(monkeypatch):
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr(
        util, "find_spec", lambda n: None if n == "dp_accounting" else find(n)
    )
    with pytest.raises(MissingDependencyError, match="keras-dlopt\\[privacy\\]"):
        private()
