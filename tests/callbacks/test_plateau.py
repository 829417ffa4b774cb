"""ReduceOnPlateau: like Keras' on a float, and on top of schedules."""

import keras
import numpy as np
import pytest

from keras_dlopt import schedules
from keras_dlopt.callbacks import ReduceOnPlateau
from keras_dlopt.errors import ConfigError


class Fake(keras.callbacks.Callback):
    """Puts a made-up value into the logs."""

    def __init__(self, values):
        super().__init__()
        self.values, self.rates = values, []

    def on_epoch_begin(self, epoch, logs=None):
        rate = self.model.optimizer.learning_rate
        self.rates.append(float(keras.ops.convert_to_numpy(rate)))

    def on_epoch_end(self, epoch, logs=None):
        logs["value"] = self.values[epoch]


class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 4:
            raise KeyboardInterrupt


def _model(rate):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def _fit(model, values, callback, *more):
    x = np.ones((8, 3), "float32")
    fake = Fake(values)
    model.fit(
        x,
        x[:, :1],
        batch_size=4,
        epochs=len(values),
        verbose=0,
        callbacks=[fake, callback, *more],
    )
    return fake.rates


VALUES = [1.0, 0.9, 0.95, 0.91, 0.92, 0.89995, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9]


@pytest.mark.parametrize("cooldown", [0, 2])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_decides_as_keras_does(cooldown, mode):
    values = VALUES if mode == "min" else [-v for v in VALUES]
    shared = {"factor": 0.5, "patience": 2, "cooldown": cooldown, "mode": mode}
    keras_own = keras.callbacks.ReduceLROnPlateau("value", min_lr=0.02, **shared)
    ours = ReduceOnPlateau("value", min_rate=0.02, **shared)
    expected = _fit(_model(0.1), values, keras_own)
    got = _fit(_model(0.1), values, ours)
    assert got == pytest.approx(expected, rel=1e-6)
    assert len(set(got)) > 2


def test_lowers_a_whole_schedule():
    schedule = schedules.OneCycle(0.1, steps=24)
    model = _model(schedule)
    rates = _fit(model, VALUES, ReduceOnPlateau("value", factor=0.5, patience=2))
    factor = np.asarray(rates) / [schedule.value(2 * i) for i in range(12)]
    assert factor == pytest.approx(
        [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125, 0.0625], rel=1e-5
    )


def test_schedule_keeps_its_factor_after_training_and_in_the_file(tmp_path):
    model = _model(keras.optimizers.schedules.CosineDecay(0.1, 100))
    _fit(model, VALUES[:5], ReduceOnPlateau("value", factor=0.5, patience=2))
    rate = float(model.optimizer.learning_rate)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert float(again.optimizer.learning_rate) == pytest.approx(rate, rel=1e-6)
    # A second run goes on from there, with one Scaled around the schedule, not two.
    _fit(model, [1.0], ReduceOnPlateau("value", factor=0.5, patience=2))
    config = model.optimizer.get_config()["learning_rate"]["config"]
    assert config["factor"] == 0.5
    assert config["schedule"]["class_name"] == "CosineDecay"


@pytest.mark.parametrize("rate", [0.1, "schedule"])
def test_killed_and_resumed_equals_unbroken(tmp_path, rate):
    def model():
        return _model(
            keras.optimizers.schedules.CosineDecay(0.1, 100)
            if rate == "schedule"
            else rate
        )

    def plateau():
        return ReduceOnPlateau("value", factor=0.5, patience=2)

    unbroken, resumed = model(), model()
    expected = _fit(unbroken, VALUES, plateau())

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    with pytest.raises(KeyboardInterrupt):
        _fit(model(), VALUES, plateau(), backup(), Kill())
    got = _fit(resumed, VALUES, plateau(), backup())
    assert got == expected[4:]
    for a, b in zip(unbroken.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_missing_value_is_named():
    with pytest.raises(ConfigError, match=r"'val_acc' is not in the logs.*'loss'"):
        _fit(_model(0.1), [1.0], ReduceOnPlateau("val_acc"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"factor": 1.5}, r"factor must be a number in \(0, 1\)"),
        ({"mode": "auto"}, r"mode must be 'min' or 'max'"),
        ({"patience": 0}, r"patience must be a whole number, 1 or greater.*in epochs"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    with pytest.raises(ConfigError, match=text):
        ReduceOnPlateau(**arguments)
