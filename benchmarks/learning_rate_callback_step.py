"""What the in-graph callbacks cost per training step, relative to none.

    python benchmarks/learning_rate_callback_step.py

Interleaved in one process; the figure is the median over rounds of the ratio of times
within one round. Writes benchmarks/results/learning_rate_callback_step.json.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import time

import keras
import numpy as np
import tensorflow as tf

from keras_dlopt import callbacks, models

CALLBACKS = {
    "none": list,
    "none again": list,
    "loss_driven": lambda: [callbacks.LossDrivenLearningRate()],
    "guard": lambda: [callbacks.DivergenceGuard()],
    "hypergradient": lambda: [callbacks.HypergradientLearningRate()],
}


def measure(*, steps_per_execution, steps, rounds):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(128 * steps, 28, 28, 1)).astype("float32")
    y = rng.integers(0, 10, 128 * steps).astype("int32")
    options = tf.data.Options()
    options.autotune.enabled = False
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(128)
    batches = batches.with_options(options)
    runs = {}
    for name, make in CALLBACKS.items():
        model = models.lenet_300_100()
        model.compile(
            keras.optimizers.Adam(1e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            steps_per_execution=steps_per_execution,
        )
        runs[name] = (model, make())
        model.fit(batches, verbose=0, callbacks=runs[name][1])
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (model, extra) in runs.items():
            begin = time.perf_counter()
            model.fit(batches, verbose=0, callbacks=extra)
            times[name].append(time.perf_counter() - begin)
    return {
        name: statistics.median(
            a / b for a, b in zip(values, times["none"], strict=True)
        )
        for name, values in times.items()
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    ratios = {
        f"steps_per_execution={n}": measure(
            steps_per_execution=n, steps=args.steps, rounds=args.rounds
        )
        for n in (1, 32)
    }
    result = {
        "command": "python benchmarks/learning_rate_callback_step.py",
        "machine": {"processor": platform.machine(), "cpus": os.cpu_count()},
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
        "network": "lenet_300_100, batch 128, Adam",
        "time_relative_to_no_callback": ratios,
    }
    here = pathlib.Path(__file__).parent / "results"
    here.mkdir(exist_ok=True)
    file = here / "learning_rate_callback_step.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(ratios, indent=1))


if __name__ == "__main__":
    main()
