"""Data-parallel throughput: two processes against one that has one core.

    python benchmarks/distribute_throughput.py

Each process is pinned to a core of its own and runs TensorFlow with one thread. One
process trains on batches of 32; two train together through
`distribute.strategy("multi_worker")` on batches of 64, 32 each. A call runs ten steps.
The network is bound by computation: about 96,000 multiply-adds a step for every weight
that is exchanged. The runs alternate; the figure is the median over rounds of the ratio
of examples a second within one round. On a machine that does other work the two
processes wait for each other's core and the figure falls.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve()
PER_WORKER, SIZE, CHANNELS = 32, 32, 32


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    # What `fit` does once an epoch, which takes workers longer, is to fade.
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--out", default="benchmarks/results/distribute_throughput.json"
    )
    parser.add_argument("--per-call", type=int, default=10, help="steps_per_execution")
    parser.add_argument("--worker", action="store_true", help="(of the processes)")
    args = parser.parse_args()
    if args.worker:
        work(args.steps, args.per_call)
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("This benchmark needs two cores.")
    rounds = []
    for number in range(args.rounds):
        load = os.getloadavg()[0]
        one, two = (throughput(count, args) for count in (1, 2))
        rounds.append({"one": one, "two": two, "ratio": two / one, "load": load})
        print(f"round {number}: {one:.1f} and {two:.1f} examples/s, {two / one:.2f}x")
    ratios = [r["ratio"] for r in rounds]
    result = {
        "command": "python benchmarks/distribute_throughput.py",
        "machine": f"{platform.machine()}, {len(cores)} cores",
        "versions": versions(),
        "batch_per_worker": PER_WORKER,
        "steps_per_execution": args.per_call,
        "ratio_median": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "bar": 1.6,
        "rounds": rounds,
    }
    path = pathlib.Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"median {result['ratio_median']:.2f}x; bar 1.6x")


def throughput(workers, args):
    """Examples a second of `workers` processes together."""
    from keras_dlopt.distribute import run

    threads = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    with tempfile.TemporaryDirectory() as folder:
        done = run(
            HERE,
            "--worker",
            "--steps",
            str(args.steps),
            "--per-call",
            str(args.per_call),
            workers=workers,
            seconds=900,
            logs=folder,
            environment={**dict.fromkeys(threads, "1"), "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        line = next(s for s in done[0].text().splitlines() if s.startswith("SECONDS "))
    return workers * PER_WORKER * args.steps / float(line.split()[1])


def work(steps, per_call):
    """One process: trains, and prints the seconds of `steps` steps."""
    config = json.loads(os.environ.get("TF_CONFIG") or '{"task": {"index": 0}}')
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[config["task"]["index"]]})

    import keras
    import numpy as np
    import tensorflow as tf

    from keras_dlopt import distribute

    plan = distribute.plan(
        "multi_worker" if "cluster" in config else "one_device",
        batch_size=PER_WORKER,
        per_replica=True,
        drop_remainder=True,
        input_sharding="off",
    )
    strategy = distribute.strategy(plan)
    with strategy.scope():
        model = distribute.data_parallel(network(keras))
        model.compile(
            keras.optimizers.SGD(0.01),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            steps_per_execution=per_call,
        )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(plan.batch_size, SIZE, SIZE, 3)).astype("float32")
    y = rng.integers(0, 10, plan.batch_size)
    data = tf.data.Dataset.from_tensors((x, y)).repeat(steps)
    data = distribute.prepare(data, plan, batched=True)
    model.fit(data, verbose=0)  # traces
    began = time.perf_counter()
    model.fit(data, verbose=0)
    print(f"SECONDS {time.perf_counter() - began}", flush=True)


def network(keras):
    layers = [keras.Input((SIZE, SIZE, 3))]
    for _ in range(4):
        layers.append(keras.layers.Conv2D(CHANNELS, 3, padding="same"))
        layers.append(keras.layers.ReLU())
    return keras.Sequential(
        [*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    )


def versions():
    import keras
    import tensorflow as tf

    return {"keras": keras.__version__, "tensorflow": tf.__version__}


if __name__ == "__main__":
    main()
