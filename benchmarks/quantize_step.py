"""Cost of a training step with int8 weights and activations, over the float step.

    python benchmarks/quantize_step.py [--networks lenet5 resnet20] [--rounds 9]

Each network trains interleaved, plain and under `int8_recipe`, in one process, without
XLA; the figure is the median over rounds of the ratio of times within one round, on the
clock and, which other work on the machine disturbs less, in CPU time of the process.
The weights alone and the wrapper alone are measured too. Adam, batch 64.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from transform_step import NETWORKS

import keras_dlopt as dlopt

RESULTS = pathlib.Path(__file__).parent / "results" / "quantize_step.json"


def recipes(model):
    return {
        "empty": dlopt.Recipe(),
        "weights": dlopt.Recipe([(dlopt.named("kernel"), dlopt.FakeQuant(bits=8))]),
        "weights_and_activations": dlopt.int8_recipe(model),
    }


def trainer(model, batches):
    """Compiles a model; returns a function that times one epoch: wall and CPU."""
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(batches, verbose=0, shuffle=False)

    def epoch():
        start = time.perf_counter(), time.process_time()
        model.fit(batches, verbose=0, shuffle=False)
        return time.perf_counter() - start[0], time.process_time() - start[1]

    return epoch


def measure(name, args):
    build, shape = NETWORKS[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(args.batch * args.steps, *shape)).astype("float32")
    y = rng.integers(0, 10, args.batch * args.steps).astype("int32")
    batches = dlopt.data.batches(x, y, batch_size=args.batch)
    model = build(input_shape=shape)
    runs = {"plain": trainer(build(input_shape=shape), batches)}
    for key, recipe in recipes(model).items():
        runs[key] = trainer(dlopt.transform(model, recipe), batches)
    times = {key: [] for key in runs}
    for _ in range(args.rounds):
        for key, epoch in runs.items():
            times[key].append(epoch())
    plain = np.array(times.pop("plain"))
    ratios = {key: np.array(values) / plain for key, values in times.items()}

    def figures(column):
        return {
            key: [
                round(float(q), 3) for q in np.quantile(r[:, column], [0.25, 0.5, 0.75])
            ]
            for key, r in ratios.items()
        }

    return {
        "network": name,
        "batch": args.batch,
        "plain_ms": round(1e3 * statistics.median(plain[:, 0]) / args.steps, 2),
        "wall_ratio_quartiles": figures(0),
        "cpu_ratio_quartiles": figures(1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40, help="per round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--smoke", action="store_true", help="write nothing")
    args = parser.parse_args()
    rows = []
    for name in args.networks:
        rows.append(measure(name, args))
        print(json.dumps(rows[-1]), flush=True)
    if args.smoke:
        return
    result = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("TF_NUM_INTRAOP_THREADS", "default"),
        "load_at_the_end": round(os.getloadavg()[0], 1),
        "keras": keras.__version__,
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
