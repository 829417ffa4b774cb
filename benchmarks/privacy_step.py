"""The time of a step with gradients of single examples, beside a plain step.

    python benchmarks/privacy_step.py [--repeats 9] [--slow]

The networks of Papernot 2021 for MNIST (two convolutions, tanh), LeNet-300-100 and a
linear model on 3,969 features, in batches of 256, compiled steps on one batch in
memory, on one thread, in turns; ratios are of medians of the process's CPU time,
which other processes disturb little. `vectorized`, which maps the step over
examples, is timed with `--slow`.
"""

# ruff: noqa: E402  the environment must be set before TensorFlow starts

import argparse
import json
import os
import pathlib
import time

for _name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from keras_dlopt import models, privacy

RESULTS = pathlib.Path(__file__).parent / "results" / "privacy_step.json"
BATCH = 256
L = keras.layers


def papernot():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            L.Conv2D(16, 8, strides=2, padding="same", activation="tanh"),
            L.MaxPooling2D(2, 1),
            L.Conv2D(32, 4, strides=2, activation="tanh"),
            L.MaxPooling2D(2, 1),
            L.Flatten(),
            L.Dense(32, activation="tanh"),
            L.Dense(10),
        ]
    )


def linear():
    return keras.Sequential([keras.Input((3969,)), L.Dense(10)])


NETWORKS = {
    "papernot": papernot,
    "lenet_300_100": models.lenet_300_100,
    "linear": linear,
}


def step(model, *, method=None):
    """A function that takes one training step."""
    if method is not None:
        model = privacy.private(model, noise_multiplier=1.0, clip=0.1, method=method)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    x = tf.random.normal((BATCH, *model.input_shape[1:]))
    y = tf.random.uniform((BATCH,), 0, 10, "int32")
    batch = (x, y) if method is None else (x, y, tf.ones(BATCH))
    model.evaluate(x, y, verbose=0)  # builds the metrics
    function = tf.function(model.train_step)
    return lambda: float(function(batch)["loss"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--slow", action="store_true")
    args = parser.parse_args()
    results = {}
    for name, build in NETWORKS.items():
        kinds = [None, "ghost", *(["vectorized"] if args.slow else [])]
        steps = {kind: step(build(), method=kind) for kind in kinds}
        times = {kind: [] for kind in kinds}
        for one in steps.values():
            one(), one()
        for _ in range(args.repeats):
            for kind, one in steps.items():
                begin = time.process_time()
                for _ in range(3):
                    one()
                times[kind].append((time.process_time() - begin) / 3)
        plain = float(np.median(times[None]))
        results[name] = {"plain_ms": round(1e3 * plain, 2)} | {
            f"{kind}_ratio": round(float(np.median(times[kind])) / plain, 2)
            for kind in kinds
            if kind
        }
        print(name, results[name], flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
