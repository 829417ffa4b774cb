"""LossDrivenLearningRate against its float64 twin, in every way Keras can run it."""

import math

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_dlopt.callbacks import LossDrivenLearningRate
from keras_dlopt.callbacks.loss_driven import START, LossState, loss_driven_rule
from keras_dlopt.errors import ConfigError, ModelError
from reference.callbacks import LossDriven

QUICK = {
    "start": 1e-3,
    "climb": 1.3,
    "smoothing": 3,
    "patience": 3,
    "cooldown": 2,
    "horizon": 50,
    "anneal": 0.25,
}


def _rule_rates(losses, config, *, rate, total):
    callback = LossDrivenLearningRate(**config)
    full = callback.get_config()
    begin = min(full["start"], rate)
    rates, state = [], LossState(*START)._replace(total=float(total))
    rule = callback.controller.rule
    for loss in losses:
        state, factor = loss_driven_rule(
            state, np.float32(loss), np.float32(begin), rule
        )
        begin = begin * float(factor)
        rates.append(begin)
    return rates


def _twin_rates(losses, config, *, rate, total):
    full = LossDrivenLearningRate(**config).get_config()
    twin = LossDriven(rate=rate, total=total, **full)
    return [twin.see(float(loss)) for loss in losses]


@settings(max_examples=15, deadline=None)
@example(seed=1, trend=-0.05, total=0, broken=set())  # ends its climb at the bound
@given(
    seed=st.integers(0, 10**6),
    trend=st.sampled_from([-0.05, 0.0, 0.05]),
    total=st.sampled_from([0, 40]),
    broken=st.sets(st.integers(0, 39), max_size=3),
)
def test_rule_equals_the_twin(seed, trend, total, broken):
    rng = np.random.default_rng(seed)
    losses = np.exp(trend * np.arange(40) + rng.normal(size=40) * 0.2)
    losses[list(broken)] = math.nan
    ours = _rule_rates(losses.astype("float32"), QUICK, rate=1e-2, total=total)
    twin = _twin_rates(losses.astype("float32"), QUICK, rate=1e-2, total=total)
    # Both branch on comparisons of smoothed losses: float32 and float64 could only
    # part where two such means agree to 1e-6, which these seeds do not hit.
    np.testing.assert_allclose(ours, twin, rtol=1e-4)


class Recorder(keras.callbacks.Callback):
    """Batch losses and rates, seen from the host."""

    def __init__(self):
        super().__init__()
        self.losses, self.rates, self.sums = [], [], (0.0, 0)

    def on_epoch_begin(self, epoch, logs=None):
        self.sums = (0.0, 0)

    def on_train_batch_end(self, batch, logs=None):
        total, count = self.sums
        new = float(logs["loss"]) * (count + 1)
        self.losses.append(new - total)
        self.sums = (new, count + 1)
        self.rates.append(float(self.model.optimizer.learning_rate))


def _data(n=96):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 6)).astype("float32")
    return x, (x @ rng.normal(size=(6, 1))).astype("float32")


def _model(**options):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(
        options.pop("optimizer", None) or keras.optimizers.SGD(0.5), "mse", **options
    )
    return model


def _fit(model, callbacks, *, epochs=3, **kwargs):
    x, y = _data()
    return model.fit(
        x,
        y,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
        **kwargs,
    )


def test_rates_in_fit_are_the_twins():
    model, recorder = _model(), Recorder()
    _fit(model, [LossDrivenLearningRate(**QUICK), recorder])
    twin = _twin_rates(recorder.losses, QUICK, rate=0.5, total=36)
    # The losses were rebuilt from running means in float32: good to about 1e-5.
    np.testing.assert_allclose(recorder.rates, twin, rtol=1e-3)
    assert len(set(recorder.rates)) > 15


def test_logs_hold_the_rate_and_keras_own_loss():
    model, plain = _model(), _model()
    history = _fit(model, [LossDrivenLearningRate(**QUICK)], epochs=2).history
    assert history["learning_rate"][-1] == float(model.optimizer.learning_rate)
    x, y = _data()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    frozen = _fit(model, None, epochs=1).history["loss"][0]
    driven = _fit(
        model,
        [LossDrivenLearningRate(start=1e-30, min_rate=1e-30, climb=1.0001)],
        epochs=1,
    ).history["loss"][0]
    assert driven == pytest.approx(frozen, rel=1e-6)
    assert plain.predict(x, verbose=0).shape == y.shape


def test_model_is_its_own_again_after_training(tmp_path):
    model = _model()
    names, config = [v.path for v in model.weights], model.get_config()
    optimizer = len(model.optimizer.variables)
    _fit(model, [LossDrivenLearningRate(**QUICK)], epochs=1)
    assert "train_step" not in vars(model)
    assert not hasattr(model, "dlopt_step_state")
    assert [v.path for v in model.weights] == names
    assert model.get_config() == config
    assert len(model.optimizer.variables) == optimizer
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    before = float(model.optimizer.learning_rate)
    _fit(model, None, epochs=1)
    assert float(model.optimizer.learning_rate) == before


def test_file_saved_while_training_loads_without_the_callback(tmp_path):
    model, path = _model(), tmp_path / "m.keras"
    saver = keras.callbacks.ModelCheckpoint(path)
    _fit(model, [LossDrivenLearningRate(**QUICK), saver], epochs=1)
    again = keras.saving.load_model(path)
    np.testing.assert_array_equal(again.weights[0].numpy(), model.weights[0].numpy())
    assert len(again.optimizer.variables) == len(model.optimizer.variables)


class Kill(keras.callbacks.Callback):
    """Ends the run as a crash would, without on_train_end."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("first", ["backup", "driven"])
def test_killed_and_resumed_equals_unbroken(tmp_path, first):
    unbroken = _model(optimizer=keras.optimizers.Adam(0.5))
    _fit(unbroken, [LossDrivenLearningRate(**QUICK)], epochs=4)

    def callbacks(*more):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        pair = [backup, LossDrivenLearningRate(**QUICK)]
        return [*(pair if first == "backup" else pair[::-1]), *more]

    killed = _model(optimizer=keras.optimizers.Adam(0.5))
    with pytest.raises(KeyboardInterrupt):
        _fit(killed, callbacks(Kill(2)), epochs=4)
    resumed = _model(optimizer=keras.optimizers.Adam(0.5))
    _fit(resumed, callbacks(), epochs=4)
    for a, b in zip(unbroken.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert float(unbroken.optimizer.learning_rate) == float(
        resumed.optimizer.learning_rate
    )


def test_resuming_with_another_optimizer_is_refused(tmp_path):
    def callbacks(*more):
        return [
            keras.callbacks.BackupAndRestore(tmp_path / "backup"),
            LossDrivenLearningRate(**QUICK),
            *more,
        ]

    with pytest.raises(KeyboardInterrupt):
        _fit(_model(optimizer=keras.optimizers.Adam(0.5)), callbacks(Kill(1)))
    other = _model(optimizer=keras.optimizers.AdamW(0.5))
    # Keras wraps what loading raises into a ValueError that quotes it.
    with pytest.raises(ValueError, match=r"optimizer Adam, this run has AdamW"):
        _fit(other, callbacks())


def test_plain_fit_after_an_interrupted_one_is_plain():
    model = _model()
    with pytest.raises(KeyboardInterrupt):
        _fit(model, [LossDrivenLearningRate(**QUICK), Kill(1)])
    rate = float(model.optimizer.learning_rate)
    _fit(model, None, epochs=1)
    assert float(model.optimizer.learning_rate) == rate
    assert "train_step" not in vars(model)


def test_evaluate_leaves_no_hook():
    model = _model()
    model.evaluate(*_data(), verbose=0, callbacks=[LossDrivenLearningRate(**QUICK)])
    assert "train_step" not in vars(model)


def test_not_finite_losses_lower_the_rate():
    config = {**QUICK, "anneal": 0.0, "cooldown": 0, "backoff": 0.2}
    rates = _rule_rates([1.0, math.nan, math.inf, math.nan], config, rate=1.0, total=0)
    assert rates == pytest.approx([1.3e-3, 2e-4, 1.4e-4, 9.8e-5], rel=1e-5)


def test_schedule_is_refused():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model = _model(optimizer=keras.optimizers.SGD(schedule))
    with pytest.raises(
        ConfigError, match="whose learning_rate is a schedule.*CosineDecay"
    ):
        _fit(model, [LossDrivenLearningRate()])
    assert "train_step" not in vars(model)


def _rate():
    return 0.1


def test_callable_rate_is_refused():
    model = _model(optimizer=keras.optimizers.SGD(_rate))
    with pytest.raises(
        ConfigError, match="cannot drive the learning rate of the optimizer SGD"
    ):
        _fit(model, [LossDrivenLearningRate()])


def test_uncompiled_model_is_refused():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    with pytest.raises(ModelError, match="need a compiled model with an optimizer"):
        LossDrivenLearningRate().set_model(model)


def test_model_without_a_loss_mean_is_refused():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        @property
        def metrics(self):
            return []

    model = Own()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    with pytest.raises(ModelError, match="keeps no mean of its loss"):
        _fit(model, [LossDrivenLearningRate()], epochs=1)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"start": -1.0}, r"start must be a positive number.*Received: -1\.0"),
        ({"climb": 1.0}, r"climb must be a number above 1"),
        ({"down": 1.0}, r"down must be a number in \(0, 1\)"),
        ({"anneal": 1.0}, r"anneal must be a number in \[0, 1\)"),
        ({"patience": 0}, r"patience must be a whole number, 1 or greater"),
        ({"min_rate": 1.0}, r"min_rate <= start <= max_rate"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    with pytest.raises(ConfigError, match=text):
        LossDrivenLearningRate(**arguments)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    constant=st.sampled_from([-100.0, -3.0, -1.0, 5.0]),
    scale=st.sampled_from([0.25, 1.0, 8.0]),
    total=st.sampled_from([0, 40]),
)
def test_a_constant_or_a_factor_changes_no_decision(seed, constant, scale, total):
    rng = np.random.default_rng(seed)
    fall = np.concatenate([np.linspace(2, 1, 20), np.geomspace(1, 9, 20)])
    # Losses on a grid of 1/1024: the constants and factors are added without rounding.
    losses = np.round(1024 * (fall + rng.normal(size=40) * 0.1)) / 1024
    plain = _rule_rates(losses, QUICK, rate=1e-2, total=total)
    other = _rule_rates(scale * losses + constant, QUICK, rate=1e-2, total=total)
    # The means of the shifted losses round at 100 * 2^-24 = 6e-6, below the grid.
    np.testing.assert_allclose(plain, other, rtol=1e-4)
    assert np.diff(plain).min() < 0 < np.diff(plain).max()


def test_short_fits_leave_the_climb_as_early_as_long_ones():
    def climb(total):
        losses = np.where(np.arange(total) < total // 10, 1.0, 3.0)
        rates = _twin_rates(losses, {}, rate=1.0, total=total)
        return np.argmax(np.diff(rates) < 0) / total, max(rates)

    for total in (1400, 700, 280):
        share, peak = climb(total)
        assert 0.09 <= share < 0.13
        assert 4e-3 < peak < 1.2e-2


def test_bound_ends_the_climb_below_it():
    config = {**QUICK, "anneal": 0.0, "max_rate": 2e-3, "backoff": 0.5}
    rates = _rule_rates([3.0, 2.0, 1.0, 1.0], config, rate=1.0, total=0)
    # Lowest loss at 1.69e-3; the next rate, 2.2e-3, would be out of bounds.
    assert rates == pytest.approx([1.3e-3, 1.69e-3, 8.45e-4, 8.45e-4], rel=1e-5)
