"""DivergenceGuard: NaN leaves no trace, explosions are rolled back."""

import keras
import numpy as np
import pytest

from keras_dlopt import optimizers
from keras_dlopt.callbacks import DivergenceGuard
from keras_dlopt.callbacks.controller import Seen
from keras_dlopt.errors import ConfigError


def _model(optimizer=None, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", **options)
    return model


def _data(bad=()):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 3)).astype("float32")
    y = x[:, :1] * 2
    for batch in bad:
        x[8 * batch] = np.nan
    return x, y


def _fit(model, x, y, *callbacks, epochs=1):
    return model.fit(
        x,
        y,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )


def _state(model):
    return [v.numpy() for v in [*model.weights, *model.optimizer.variables]]


@pytest.mark.parametrize("steps", [1, 3])
def test_nan_batches_leave_no_trace(steps):
    guarded, clean = _model(steps_per_execution=steps), _model()
    # A factor of nearly 1: all but the rate must be as if the batches were not there.
    x, y = _data(bad=[1, 4])
    guard = DivergenceGuard(factor=0.999999)
    _fit(guarded, x, y, guard)
    keep = np.repeat([True, False, True, True, False, True], 8)
    _fit(clean, x[keep], y[keep])
    for a, b in zip(_state(guarded), _state(clean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert int(guarded.optimizer.iterations) == 4
    assert guard.undone == 2


def test_rate_is_lowered_for_every_bad_step():
    model = _model()
    _fit(model, *_data(bad=[1, 4]), DivergenceGuard(factor=0.5))
    assert float(model.optimizer.learning_rate) == pytest.approx(0.0025)


def test_optimizer_state_is_never_poisoned_by_the_last_step():
    model = _model(keras.optimizers.Adam(0.01, clipnorm=1.0))
    _fit(model, *_data(bad=[5]), DivergenceGuard())
    assert all(np.isfinite(value).all() for value in _state(model))


def test_schedule_is_multiplied():
    model = _model(
        keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 99))
    )
    _fit(model, *_data(bad=[0]), DivergenceGuard(factor=0.5))
    plain = keras.optimizers.schedules.CosineDecay(0.1, 99)(5)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.5 * float(plain))


@pytest.mark.parametrize("make", [optimizers.Adam, optimizers.SOAP])
def test_fused_optimizers_are_not_poisoned_either(make):
    guarded, clean = _model(make(0.01)), _model(make(0.01))
    x, y = _data(bad=[1, 4])
    _fit(guarded, x, y, DivergenceGuard(factor=0.999999))
    keep = np.repeat([True, False, True, True, False, True], 8)
    _fit(clean, x[keep], y[keep])
    for a, b in zip(_state(guarded), _state(clean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


class Bursts(keras.callbacks.Callback):
    """Ruins the weights in the middle of an epoch, and keeps what was before it."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def on_epoch_begin(self, epoch, logs=None):
        self.before = _state(self.model)

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.at:
            for v in self.model.trainable_variables:
                v.assign(v * 1e3)


def _judged(losses, *, smoothing=20, explosion=3.0):
    """Where the guard says that a sequence of losses has exploded; None for nowhere."""
    rule = DivergenceGuard(smoothing=smoothing, explosion=explosion).controller
    state = [np.float32(part) for part in rule.initial(None)]
    for step, loss in enumerate(losses):
        seen = Seen(
            loss=np.float32(loss), rate=None, variables=[np.ones(1)], total=lambda t: t
        )
        state, _, _ = rule.after_step(state, seen)
        if state[0][4] > 0.5:
            return step
    return None


@pytest.mark.parametrize("constant", [0.0, -1.0, -2.5, 50.0])
def test_a_constant_changes_no_verdict(constant):
    rng = np.random.default_rng(0)
    # On a grid of 1/1024, so that the constants are added without rounding.
    noise = np.round(1024 * rng.normal(size=300) * 0.1) / 1024
    healthy = np.round(1024 * 2.3 * np.exp(-np.arange(300) / 60)) / 1024 + noise
    assert _judged(healthy + constant) is None
    assert _judged(noise + constant) is None  # flat all along
    broken = healthy.copy()
    broken[200:] += np.geomspace(0.5, 32, 100)
    assert _judged(broken + constant) == _judged(broken)
    assert 200 < _judged(broken) < 260
    collapsed = np.where(np.arange(300) < 200, healthy, 2.5)
    assert 200 < _judged(collapsed + constant) < 225


def test_explosion_brings_the_epochs_start_back():
    model, burst = _model(), Bursts(4)
    guard = DivergenceGuard(factor=0.5, smoothing=2, check_every=100)
    _fit(model, *_data(), guard, burst)
    assert guard.rollbacks == 1
    rate = float(model.optimizer.learning_rate)
    assert rate == pytest.approx(0.005)
    model.optimizer.learning_rate = 0.01
    for a, b in zip(_state(model), burst.before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_repeated_explosions_stop_the_training():
    model = _model(keras.optimizers.SGD(0.01))

    class Always(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            for v in self.model.trainable_variables:
                v.assign(v * 30.0)

    guard = DivergenceGuard(smoothing=1, check_every=1, max_rollbacks=2)
    with pytest.warns(UserWarning, match=r"the loss exploded 2 times in one epoch"):
        _fit(model, *_data(), Always(), guard, epochs=3)
    assert model.stop_training


def test_killed_and_resumed_equals_unbroken(tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    x, y = _data(bad=[2])
    unbroken, resumed = _model(), _model()
    _fit(unbroken, x, y, DivergenceGuard(), epochs=4)
    with pytest.raises(KeyboardInterrupt):
        _fit(_model(), x, y, backup(), DivergenceGuard(), Kill(), epochs=4)
    guard = DivergenceGuard()
    _fit(resumed, x, y, guard, backup(), epochs=4)
    for a, b in zip(_state(unbroken), _state(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert guard.undone == 4


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"factor": 1.0}, r"factor must be a number in \(0, 1\)"),
        ({"explosion": 1.0}, r"explosion must be a number above 1"),
        ({"check_every": 0}, r"check_every must be a whole number"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    with pytest.raises(ConfigError, match=text):
        DivergenceGuard(**arguments)
