"""Optimizer state carried into a strategy and out of it, by each kind of file."""

import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

from contracts.building import trial


def _by_checkpoint(model, again, folder):
    held = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    path = held.save(str(folder / "c"))
    held = tf.train.Checkpoint(model=again, optimizer=again.optimizer)
    status = held.restore(path)
    again.optimizer.build(again.trainable_variables)
    status.assert_consumed()


def _by_weights(model, again, folder):
    model.save_weights(folder / "m.weights.h5")
    again.optimizer.build(again.trainable_variables)
    again.load_weights(folder / "m.weights.h5")


def _state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in variables]


def _trained(case, strategy):
    with strategy.scope():
        model = trial(case).model
        optimizer, weights = model.optimizer, model.trainable_variables
        optimizer.build(weights)

    def step():
        optimizer.apply([tf.ones(v.shape) * 0.1 for v in weights], weights)

    for _ in range(3):
        strategy.run(step)
    return model


def check(case, there):
    """Asserts that state is bit-equal after each way, from and to a strategy."""
    alone = tf.distribute.get_strategy()
    for start, end in ((alone, there), (there, alone)):
        model = _trained(case, start)
        for move in (_by_checkpoint, _by_weights):
            with tempfile.TemporaryDirectory() as folder:
                with end.scope():
                    again = trial(case).model
                    move(model, again, pathlib.Path(folder))
                for a, b in zip(_state(model), _state(again), strict=True):
                    np.testing.assert_array_equal(a, b)
