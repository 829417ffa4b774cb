"""Training stopped and taken up again equals training on, bit for bit, by every way."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from catalogue.optimizers import CASES

MADE = {case.name: case.make for case in CASES if case.kind == "optimizer"}


def _model(name, seed):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(3),
        ]
    )
    model.compile(MADE[name](), "mse", run_eagerly=True)
    return model


def _data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 6)).astype("float32")
    return x, rng.normal(size=(16, 3)).astype("float32")


def _train(model, first, last):
    """Steps with gradients that depend on the step alone."""
    for i in range(first, last):
        rng = np.random.default_rng(i)
        grads = [
            tf.constant(rng.normal(size=tuple(v.shape)).astype("float32"))
            for v in model.trainable_variables
        ]
        model.optimizer.apply(grads, model.trainable_variables)


def _state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def _by_keras_file(model, again, folder):
    model.save(folder / "m.keras")
    return keras.saving.load_model(folder / "m.keras")


def _by_weights(model, again, folder):
    model.save_weights(folder / "m.weights.h5")
    again.optimizer.build(again.trainable_variables)
    again.load_weights(folder / "m.weights.h5")
    return again


def _checkpoint(model):
    return tf.train.Checkpoint(model=model, optimizer=model.optimizer)


def _by_checkpoint_before(model, again, folder):
    path = _checkpoint(model).save(str(folder / "c"))
    _checkpoint(again).restore(path)
    return again


def _by_checkpoint_after(model, again, folder):
    path = _checkpoint(model).save(str(folder / "c"))
    again.optimizer.build(again.trainable_variables)
    _checkpoint(again).restore(path).assert_consumed()
    return again


def _by_model_alone(model, again, folder):
    path = tf.train.Checkpoint(model).save(str(folder / "c"))
    tf.train.Checkpoint(again).restore(path)
    return again


def _by_manager(model, again, folder):
    manager = tf.train.CheckpointManager(_checkpoint(model), str(folder), 2)
    for number in range(3):
        manager.save(number)
    held = _checkpoint(again)
    held.restore(tf.train.CheckpointManager(held, str(folder), 2).latest_checkpoint)
    return again


WAYS = {
    "keras_file": _by_keras_file,
    "weights": _by_weights,
    "checkpoint_before_build": _by_checkpoint_before,
    "checkpoint_after_build": _by_checkpoint_after,
    "checkpoint_of_the_model": _by_model_alone,
    "manager": _by_manager,
}


@pytest.mark.parametrize("name", MADE)
def test_resumed_training_is_bit_equal(name, tmp_path):
    model, states = _model(name, 0), {}
    _train(model, 0, 3)
    for way, move in WAYS.items():
        folder = tmp_path / way
        folder.mkdir()
        again = move(model, _model(name, 1), folder)
        _train(again, 3, 6)
        states[way] = _state(again)
    _train(model, 3, 6)
    for way, found in states.items():
        for a, b in zip(_state(model), found, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=way)


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("Adam", "SOAP", "ScheduleFree", "Lookahead", "Adam_accumulating")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in MADE
    ],
)
def test_backup_and_restore_is_bit_equal(name, tmp_path):
    """A run that stops after its first epoch, and one that goes on from the backup."""

    def fit(epochs, *callbacks):
        model = _model(name, 0)
        model.fit(
            *_data(),
            batch_size=8,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=list(callbacks),
        )
        return model

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    folder = str(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        fit(3, keras.callbacks.BackupAndRestore(folder), Stop())
    resumed = fit(3, keras.callbacks.BackupAndRestore(folder))
    for a, b in zip(_state(fit(3)), _state(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
