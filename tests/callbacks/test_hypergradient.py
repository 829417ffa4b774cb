"""HypergradientLearningRate against a float64 twin on least squares."""

import keras
import numpy as np
import pytest

from keras_dlopt.callbacks import HypergradientLearningRate
from keras_dlopt.errors import ConfigError, ModelError
from reference.callbacks import hypergradient_sgd


def _data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype("float32")
    return x, x @ np.asarray([[1.0], [-2.0], [0.5]], "float32")


def _model(optimizer, **options):
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(optimizer, "mse", **options)
    return model


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps_per_execution", [1, 5])
def test_rates_and_weights_are_the_twins(momentum, steps_per_execution):
    optimizer = keras.optimizers.SGD(0.02, momentum=momentum)
    model = _model(optimizer, steps_per_execution=steps_per_execution)
    x, y = _data()
    start = model.get_weights()[0]
    model.fit(
        x,
        y,
        batch_size=8,
        epochs=4,
        shuffle=False,
        verbose=0,
        callbacks=[HypergradientLearningRate(beta=0.1, max_rate=0.05)],
    )
    weights, rate = hypergradient_sgd(
        x,
        y,
        start,
        batch=8,
        epochs=4,
        rate=0.02,
        momentum=momentum,
        beta=0.1,
        high=0.05,
    )
    # 20 float32 steps; the rate is a product of 20 factors near 1.
    np.testing.assert_allclose(model.get_weights()[0], weights, rtol=1e-4, atol=1e-5)
    assert float(optimizer.learning_rate) == pytest.approx(rate, rel=1e-4)


def test_apply_of_the_optimizer_is_its_own_again():
    model = _model(keras.optimizers.Adam(0.01))
    model.fit(*_data(), verbose=0, callbacks=[HypergradientLearningRate()])
    assert "apply" not in vars(model.optimizer)


def test_loss_scaling_is_refused():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    with pytest.raises(ModelError, match=r"needs the gradients, which LossScale"):
        _model(optimizer).fit(
            *_data(), verbose=0, callbacks=[HypergradientLearningRate()]
        )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"beta": 1.0}, r"beta must be a number in \(0, 1\)"),
        ({"min_rate": 1.0, "max_rate": 0.1}, r"min_rate <= max_rate"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    with pytest.raises(ConfigError, match=text):
        HypergradientLearningRate(**arguments)
