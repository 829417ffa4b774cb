"""Cost of a training step under clustering, relative to the plain Keras step.

    python benchmarks/cluster_step.py --out benchmarks/results/cluster_step.json

Interleaved in one process as in `transform_step.py`, by the wall clock and by the
processor time of the process, which other programs on the machine disturb less. The
empty recipe shows the cost of the wrapper alone and the noise. Also measured: the
seconds that it takes to transform the network, over building the plain one.
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
from transform_step import NETWORKS

import keras_dlopt as dlopt


def recipes():
    kernels = dlopt.named("kernel")
    return {
        "empty": dlopt.Recipe(),
        "cluster_16": dlopt.Recipe([(kernels, dlopt.Cluster(16))]),
        "cluster_256": dlopt.Recipe([(kernels, dlopt.Cluster(256))]),
        "cluster_16_reassign_100": dlopt.Recipe(
            [(kernels, dlopt.Cluster(16, reassign=100))]
        ),
    }


def trainer(model, batches):
    """Compiles a model; returns a function that trains one epoch and times it."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=False)
    model.fit(batches, verbose=0)  # traces

    def epoch():
        wall, cpu = time.perf_counter(), time.process_time()
        model.fit(batches, verbose=0)
        return time.perf_counter() - wall, time.process_time() - cpu

    return epoch


def measure(name, *, batch, steps, rounds):
    build, shape = NETWORKS[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch * steps, *shape)).astype("float32")
    y = rng.integers(0, 10, batch * steps).astype("int32")
    batches = dlopt.data.batches(x, y, batch_size=batch)
    start = time.perf_counter()
    model = build(input_shape=shape)
    plain_seconds = time.perf_counter() - start
    runs = {"plain": trainer(build(input_shape=shape), batches)}
    added = {}
    for key, recipe in recipes().items():
        start = time.perf_counter()
        small = dlopt.transform(model, recipe)
        added[key] = round(time.perf_counter() - start, 2)
        runs[key] = trainer(small, batches)
    times = {key: [] for key in runs}
    for _ in range(rounds):
        for key, epoch in runs.items():
            times[key].append(epoch())
    ratios = [
        {
            key: [a[i] / b[i] for a, b in zip(times[key], times["plain"], strict=True)]
            for key in runs
            if key != "plain"
        }
        for i in range(2)
    ]
    return {
        "network": name,
        "batch": batch,
        "steps": steps,
        "rounds": rounds,
        "plain_ms": 1e3 * statistics.median(t[0] for t in times["plain"]) / steps,
        "wall": {k: statistics.median(v) for k, v in ratios[0].items()},
        "cpu": {k: statistics.median(v) for k, v in ratios[1].items()},
        "wall_quartiles": {
            k: statistics.quantiles(v)[::2] for k, v in ratios[0].items()
        },
        "plain_build_seconds": round(plain_seconds, 2),
        "added_build_seconds": added,
        "load_average": os.getloadavg()[0],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60, help="per round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    rows = []
    for name in args.networks:
        rows.append(
            measure(name, batch=args.batch, steps=args.steps, rounds=args.rounds)
        )
        print(json.dumps(rows[-1]), flush=True)
        if args.out:
            result = {
                "machine": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "keras": keras.__version__,
                "rows": rows,
            }
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
