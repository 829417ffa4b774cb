"""LearningRateFinder: what it measures, and that it leaves no trace."""

import keras
import numpy as np
import pytest

from keras_dlopt import schedules
from keras_dlopt.callbacks import LearningRateFinder
from keras_dlopt.callbacks.finder import analyse
from keras_dlopt.errors import ConfigError


def _model(**options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse", **options)
    return model


def _data():
    x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    return x, x[:, :1] * 2


def _state(model):
    variables = [
        *model.weights,
        *model.non_trainable_variables,
        *model.optimizer.variables,
    ]
    return [v.numpy() for v in variables]


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_everything_is_restored_to_the_bit(steps_per_execution):
    model = _model(steps_per_execution=steps_per_execution)
    model.fit(*_data(), batch_size=16, verbose=0)
    before, history = _state(model), model.history
    test = LearningRateFinder(low=1e-4, high=10.0, steps=22).find(
        model, *_data(), batch_size=16
    )
    for a, b in zip(_state(model), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.history is history
    np.testing.assert_allclose(test.rates, np.geomspace(1e-4, 10.0, 22), rtol=1e-6)
    assert np.isfinite(test.losses[:10]).all()
    assert len(test.losses) == 22


def test_training_goes_on_as_if_nothing_had_been():
    tested, plain = _model(), _model()
    LearningRateFinder(steps=12).find(tested, *_data(), batch_size=16)
    for model in (tested, plain):
        keras.utils.set_random_seed(5)
        model.fit(*_data(), batch_size=16, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(_state(tested), _state(plain), strict=True):
        np.testing.assert_array_equal(a, b)


def test_losses_are_those_of_training_at_these_rates():
    x, y = _data()
    finder = LearningRateFinder(low=1e-3, high=1.0, steps=10)
    found = finder.find(_model(), x, y, batch_size=16, shuffle=False)
    model, losses = _model(), []
    for t in range(10):
        model.optimizer.learning_rate = 1e-3 * 1000 ** (t / 9)
        batch = slice(16 * (t % 4), 16 * (t % 4) + 16)
        model.reset_metrics()
        losses.append(model.train_on_batch(x[batch], y[batch]))
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4)


def test_suggestion_is_the_steepest_point():
    rates = np.geomspace(1e-6, 1.0, 121)
    log = np.log10(rates)
    # Falls around 1e-3, is flat until 1e-1, then explodes.
    losses = 2.3 - 2 / (1 + np.exp(-4 * (log + 3))) + np.exp(8 * (log + 0.7))
    test = analyse(rates, losses, smoothing=2, explosion=4.0)
    assert 5e-4 < test.suggestion < 2e-3
    assert 0.1 < test.diverged < 1.0


def test_no_descent_gives_no_suggestion():
    rates = np.geomspace(1e-6, 1.0, 40)
    test = analyse(rates, np.linspace(1.0, 2.0, 40), smoothing=2, explosion=4.0)
    assert test.suggestion is None
    assert test.diverged is None


def test_not_finite_losses_end_the_test():
    losses = np.full(20, np.nan)
    losses[:15] = np.linspace(2.0, 1.0, 15)
    test = analyse(np.geomspace(1e-3, 1, 20), losses, smoothing=2, explosion=4.0)
    assert test.diverged == pytest.approx(np.geomspace(1e-3, 1, 20)[15])


@pytest.mark.parametrize("constant", [-3.0, -1.0, 100.0])
@pytest.mark.parametrize("explodes", [True, False])
def test_a_constant_changes_nothing(constant, explodes):
    rates = np.geomspace(1e-6, 1.0, 121)
    log = np.log10(rates)
    losses = 2.3 - 2 / (1 + np.exp(-4 * (log + 3)))
    losses += np.random.default_rng(0).normal(size=121) * 0.05
    if explodes:
        losses += np.exp(8 * (log + 0.7))
    plain = analyse(rates, losses, smoothing=5, explosion=4.0)
    moved = analyse(rates, losses + constant, smoothing=5, explosion=4.0)
    assert (plain.diverged is not None) == explodes
    assert (moved.suggestion, moved.diverged) == (plain.suggestion, plain.diverged)


def test_plot_marks_the_suggestion():
    test = analyse(
        np.geomspace(1e-3, 1, 20), np.linspace(2.0, 1.0, 20), smoothing=2, explosion=4.0
    )
    axes = test.plot().axes[0]
    assert axes.get_xscale() == "log"
    assert len(axes.lines) == 3


def test_schedule_is_refused():
    model = _model()
    model.compile(keras.optimizers.SGD(schedules.OneCycle(0.1, steps=9)), "mse")
    with pytest.raises(ConfigError, match="LearningRateFinder sets the rate itself"):
        LearningRateFinder().find(model, *_data())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"low": 0.0}, r"low must be a positive number"),
        (
            {"low": 1.0, "high": 0.1},
            r"low < high must hold\. Received: low=1\.0, high=0\.1",
        ),
        ({"steps": 5}, r"steps must be a whole number, 10 or greater"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    with pytest.raises(ConfigError, match=text):
        LearningRateFinder(**arguments)
