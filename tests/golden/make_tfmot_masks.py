"""Writes the masks of TensorFlow Model Optimization 0.8.1 along a training run.

Run once, where tf_keras 2.21 and TFMOT 0.8.1 are installed:

    TF_USE_LEGACY_KERAS=1 python tests/golden/make_tfmot_masks.py
"""

import json
import os
import pathlib

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras

BEGIN, END, EVERY, STEPS = 4, 24, 4, 28
rng = np.random.default_rng(0)
x = rng.normal(size=(8 * STEPS, 9)).astype("float32")
y = rng.normal(size=(8 * STEPS, 5)).astype("float32")
start = [
    rng.normal(scale=0.4, size=shape).astype("float32")
    for shape in [(9, 7), (7,), (7, 5), (5,)]
]

model = keras.Sequential(
    [
        keras.layers.Dense(7, activation="tanh", input_shape=(9,), name="a"),
        keras.layers.Dense(5, name="b"),
    ]
)
model.set_weights(start)
pruned = tfmot.sparsity.keras.prune_low_magnitude(
    model, tfmot.sparsity.keras.PolynomialDecay(0.2, 0.83, BEGIN, END, frequency=EVERY)
)
updates = []


class Record(keras.callbacks.Callback):
    """The weights that each update sees, and the mask that it makes."""

    def on_train_batch_begin(self, batch, logs=None):
        if BEGIN <= batch <= END and (batch - BEGIN) % EVERY == 0:
            found = [layer.pruning_vars[0][0].numpy() for layer in pruned.layers]
            updates.append({"step": batch, "weights": [w.tolist() for w in found]})

    def on_train_batch_end(self, batch, logs=None):
        if updates and updates[-1]["step"] == batch:
            masks = [layer.pruning_vars[0][1].numpy() for layer in pruned.layers]
            updates[-1]["masks"] = [m.astype(int).tolist() for m in masks]


pruned.compile(keras.optimizers.SGD(0.02), "mse")
pruned.fit(
    x,
    y,
    batch_size=8,
    shuffle=False,
    verbose=0,
    callbacks=[tfmot.sparsity.keras.UpdatePruningStep(), Record()],
)
result = {
    "schedule": {
        "sparsity": 0.83,
        "initial": 0.2,
        "begin": BEGIN,
        "end": END,
        "frequency": EVERY,
    },
    "updates": updates,
}
path = pathlib.Path(__file__).parent / "tfmot_masks.json"
path.write_text(json.dumps(result) + "\n")
