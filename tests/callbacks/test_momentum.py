"""ScheduledMomentum against float64 twins of SGD and Adam."""

import keras
import numpy as np
import pytest

from keras_dlopt import optimizers, schedules
from keras_dlopt.callbacks import ScheduledMomentum
from keras_dlopt.errors import ConfigError
from reference.callbacks import scheduled_momentum

CYCLE = schedules.OneCycle(0.1, steps=20, low_momentum=0.5, high_momentum=0.9)


def _data():
    x = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
    return x, x @ np.asarray([[1.0], [-2.0], [0.5]], "float32")


def _fit(optimizer, **options):
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(optimizer, "mse", **options)
    start = model.get_weights()[0]
    callback = ScheduledMomentum(CYCLE)
    x, y = _data()
    model.fit(
        x, y, batch_size=8, epochs=4, shuffle=False, verbose=0, callbacks=[callback]
    )
    return start, model.get_weights()[0]


@pytest.mark.parametrize(
    "options", [{}, {"steps_per_execution": 5}, {"jit_compile": True}], ids=str
)
@pytest.mark.parametrize("kind", ["sgd", "adam", "our sgd", "our adam"])
def test_weights_are_the_twins(kind, options):
    make = {
        "sgd": lambda: keras.optimizers.SGD(0.02, momentum=0.9),
        "adam": lambda: keras.optimizers.Adam(0.02),
        "our sgd": lambda: optimizers.SGD(0.02, momentum=0.9),
        "our adam": lambda: optimizers.Adam(0.02),
    }[kind]
    optimizer = make()
    start, got = _fit(optimizer, **options)
    expected = scheduled_momentum(
        *_data(),
        start,
        kind=kind.split()[-1],
        rate=0.02,
        batch=8,
        epochs=4,
        momentum=CYCLE.momentum,
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert optimizer.get_config() == make().get_config() | {"name": optimizer.name}


def test_optimizer_without_momentum_is_refused():
    with pytest.raises(ConfigError, match=r"SGD has no momentum.*SGD\(momentum=0\.9\)"):
        _fit(keras.optimizers.SGD(0.1))


def test_optimizers_that_fix_their_momentum_are_refused():
    with pytest.raises(ConfigError, match=r"drives Keras' own.*Received: RAdam"):
        _fit(optimizers.RAdam(0.1))


def test_schedule_without_momentum_is_refused():
    with pytest.raises(ConfigError, match=r"needs a schedule with a momentum"):
        ScheduledMomentum(schedules.Constant(0.1))
