"""Trains a small model with what the command line says; prints its weights' digest.

    python trainer.py STRATEGY DIRECTORY [--kill STEP | --term STEP] [--out FILE]

The data, the model with dropout and batch normalization, and the optimizer are fixed,
so that two runs must end with the same weights, bit for bit, however often they were
killed on the way.
"""

import argparse
import os
import signal

import keras
import numpy as np
import tensorflow as tf

import keras_dlopt as dlopt

parser = argparse.ArgumentParser()
parser.add_argument("strategy")
parser.add_argument("directory")
parser.add_argument("--kill", type=int, default=-1)
parser.add_argument("--term", type=int, default=-1)
parser.add_argument("--once", default="")
parser.add_argument("--out", default="")
parser.add_argument("--plain", action="store_true")
options = parser.parse_args()

plan = dlopt.distribute.plan(options.strategy, batch_size=8)
strategy = dlopt.distribute.strategy(plan)
keras.utils.set_random_seed(1)
EPOCHS = 3


class Ends(keras.callbacks.Callback):
    """Sends this process a signal in a given step."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def on_train_batch_begin(self, batch, logs=None):
        for number, step in (
            (signal.SIGKILL, options.kill),
            (signal.SIGTERM, options.term),
        ):
            if self.seen == step and not (
                options.once and os.path.exists(options.once)
            ):
                if options.once:
                    open(options.once, "w").close()
                os.kill(os.getpid(), number)
        self.seen += 1


def build():
    layers = [keras.Input((8,)), keras.layers.Dense(16, use_bias=False)]
    if not options.plain:
        normalize = keras.layers.BatchNormalization(synchronized=True)
        layers += [normalize, keras.layers.Dropout(0.3, seed=3)]
    return keras.Sequential([*layers, keras.layers.ReLU(), keras.layers.Dense(4)])


rng = np.random.default_rng(0)
x, y = rng.normal(size=(44, 8)).astype("float32"), rng.integers(0, 4, 44)
examples = tf.data.Dataset.from_tensor_slices((x, y))
with strategy.scope():
    model = dlopt.distribute.data_parallel(build())
    model.compile(
        dlopt.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
if options.plain:
    data = dlopt.distribute.prepare(examples, plan)
    history = model.fit(data, epochs=EPOCHS, verbose=0)
else:
    history = dlopt.distribute.fit(
        model,
        examples,
        plan,
        directory=options.directory,
        epochs=EPOCHS,
        every=2,
        shuffle=44,
        seed=5,
        verbose=0,
        callbacks=[Ends()],
    )
weights = [np.asarray(v.value.numpy()) for v in model.weights]
weights.append(np.asarray(history.history.get("loss", [0.0])[-1]))
if options.out:
    np.savez(options.out, *weights)
