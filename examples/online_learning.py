"""A stream whose pixels are permuted half-way: plain SGD, and a learner that reacts.

python examples/online_learning.py --data mnist
python examples/online_learning.py --smoke
"""

import argparse

import keras
import numpy as np

import keras_dlopt as dlopt
from keras_dlopt import online

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", default="mnist")
parser.add_argument("--smoke", action="store_true")
args = parser.parse_args()
x, y = dlopt.data.load("digits" if args.smoke else args.data).train
x, half = x.reshape(len(x), -1), min(len(x) // 2, 10_000)
x[half:] = x[half:][:, np.random.default_rng(0).permutation(x.shape[1])]
REACTING = dict(
    memory=online.Reservoir(1000),
    replay=online.Replay(rows=48, steps=2),
    drift=online.ADWIN(),
    on_drift=online.OnDrift(factor=2.0, half_life=500, forget=True, recent=64),
)
for name, parts in (("plain", {"memory": None}), ("reacting", REACTING)):
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.SGD(0.1), loss)
    learner = online.OnlineLearner(net, batch_size=16, **parts)
    errors = learner.learn(x[: 2 * half], y[: 2 * half]).errors
    parts = [1 - part.mean() for part in np.array_split(errors, 8)]
    print(f"{name}: {' '.join(f'{part:.1%}' for part in parts)}", learner.drifts)
