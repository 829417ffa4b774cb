"""Cost of a training step under a transform, relative to the plain Keras step.

    python benchmarks/transform_step.py

Each network trains interleaved, plain and under each recipe, in one process; the figure
is the median over rounds of the ratio of times within one round. The plain model under
an empty recipe is measured too: it shows the cost of the wrapper alone and the noise.
"""

import argparse
import json
import pathlib
import platform
import statistics
import time

import keras
import numpy as np

import keras_dlopt as dlopt
from keras_dlopt import models
from keras_dlopt.schedules import PolynomialSparsity

NETWORKS = {
    "lenet5": (models.lenet5, (28, 28, 1)),
    "resnet20": (models.resnet20, (28, 28, 1)),
}


def recipes(steps):
    kernels = dlopt.named("kernel")
    schedule = PolynomialSparsity(0.9, end=steps, frequency=100)
    return {
        "empty": dlopt.Recipe(),
        "prune": dlopt.Recipe([(kernels, dlopt.Prune(schedule))]),
        "fake_quant_8": dlopt.Recipe([(kernels, dlopt.FakeQuant(bits=8))]),
        "cluster_16": dlopt.Recipe([(kernels, dlopt.Cluster(16))]),
    }


def trainer(model, batches, jit):
    """Compiles a model; returns a function that trains one epoch and times it."""
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit,
    )
    model.fit(batches, verbose=0)  # traces and compiles

    def epoch():
        start = time.perf_counter()
        model.fit(batches, verbose=0)
        return time.perf_counter() - start

    return epoch


def measure(name, *, jit, batch, steps, rounds):
    build, shape = NETWORKS[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch * steps, *shape)).astype("float32")
    y = rng.integers(0, 10, batch * steps).astype("int32")
    batches = dlopt.data.batches(x, y, batch_size=batch)
    model = build(input_shape=shape)
    runs = {"plain": trainer(build(input_shape=shape), batches, jit)}
    for key, recipe in recipes(steps * (rounds + 1)).items():
        runs[key] = trainer(dlopt.transform(model, recipe), batches, jit)
    times = {key: [] for key in runs}
    for _ in range(rounds):
        for key, epoch in runs.items():
            times[key].append(epoch())
    return {
        "network": name,
        "jit": jit,
        "batch": batch,
        "plain_ms": 1e3 * statistics.median(times["plain"]) / steps,
        **{
            key: statistics.median(
                a / b for a, b in zip(times[key], times["plain"], strict=True)
            )
            for key in runs
            if key != "plain"
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--jit", type=int, nargs="*", default=[0, 1], choices=[0, 1])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60, help="per round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    rows = []
    for name in args.networks:
        for jit in args.jit:
            row = measure(
                name,
                jit=bool(jit),
                batch=args.batch,
                steps=args.steps,
                rounds=args.rounds,
            )
            rows.append(row)
            print(json.dumps(row), flush=True)
    if args.out:
        result = {
            "machine": platform.processor() or platform.machine(),
            "keras": keras.__version__,
            "rows": rows,
        }
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
