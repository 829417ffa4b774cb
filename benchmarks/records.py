"""Bytes against error of fixed networks, trained towards few bytes (`RateAware`).

    KERAS_DLOPT_DATA=... nice -n 19 python benchmarks/records.py [--rows lenet5]

A network is trained in float, then under one recipe, `RateAware` on all kernels and
biases; the file is written, read back, and judged. It trains on the training images
but for the last 5,000 of MNIST (10,000 of Fashion-MNIST), on which the settings were
chosen, without augmentation and without a teacher unless the row says so. `--validate`
judges on those; without it the test images are used, once a network and seed. A
finished row is written at once and not run again.
"""

import argparse
import json
import math
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import keras
import numpy as np
from keras import ops

import keras_dlopt as dlopt

RESULTS = pathlib.Path(__file__).parent / "results" / "records.json"
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BATCH = 256
# Data, network, goal of the codes in bytes, epochs in float and under the recipe;
# bars: bytes and error in percent.
ROWS = {
    "lenet_300_100": ("mnist", "lenet_300_100", 7_000, 5, 16, (7_500, 1.9)),
    "lenet5": ("mnist", "lenet5", 2_500, 3, 16, (2_800, 0.85)),
    "fashion_lenet_300_100": (
        *("fashion_mnist", "lenet_300_100", 14_000, 5, 16),
        (15_000, None),
    ),
    "fashion_lenet5": ("fashion_mnist", "lenet5", 5_500, 3, 16, (6_000, None)),
}


class Falling(keras.optimizers.schedules.LearningRateSchedule):
    """Constant for 55 % of the steps, then a cosine down to a hundredth."""

    def __init__(self, rate, steps):
        self.rate, self.steps = rate, steps

    def __call__(self, step):
        done = ops.cast(step, "float32") / self.steps
        cosine = 0.5 + 0.5 * ops.cos(math.pi * (done - 0.55) / 0.45)
        return self.rate * ops.where(done < 0.55, 1.0, ops.maximum(0.01, cosine))

    def get_config(self):
        return {"rate": self.rate, "steps": self.steps}


def error(model, x, y):
    found = model.predict(x, batch_size=1000, verbose=0).argmax(-1)
    return 100 * float(np.mean(found != y))


def row(name, seed, args):
    """Trains, codes and judges one network."""
    set_name, network, goal, first, then, bar = ROWS[name]
    start = time.process_time()
    keras.utils.set_random_seed(seed)
    data = dlopt.data.load(set_name)
    judged = data.val if args.validate else data.test
    shuffled = {"batch_size": BATCH, "shuffle": True, "drop_remainder": True}
    batches = dlopt.data.batches(*data.train, seed=seed, **shuffled)
    steps = len(data.x_train) // BATCH
    net = getattr(dlopt.models, network)(input_shape=data.input_shape)
    falling = keras.optimizers.schedules.CosineDecay(2e-3, first * steps)
    fit = {"verbose": 0, "shuffle": False}
    net.compile(keras.optimizers.Adam(falling), LOSS, steps_per_execution=10)
    net.fit(batches, epochs=first, **fit)
    total = then * steps
    rate_aware = dlopt.RateAware(goal, end=total)
    small = dlopt.transform(net, dlopt.Recipe([(dlopt.rank(1, 2, 4), rate_aware)]))
    rate = Falling(1e-3, total)
    small.compile(keras.optimizers.Adam(rate), LOSS, steps_per_execution=10)
    small.fit(batches, epochs=then, **fit)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.dlopt"
        ledger = dlopt.save_compressed(dlopt.finalize(small), path)
        again = dlopt.load_compressed(path)
        size = path.stat().st_size
    return {
        "row": name,
        "seed": seed,
        "goal": goal,
        "epochs": [first, then],
        "judged on": "validation" if args.validate else "test",
        "bytes": size,
        "plain_bytes": ledger.plain_bytes,
        "architecture_bytes": ledger.architecture_bytes,
        "error": error(again, *judged),
        "error_float": error(net, *judged),
        "bar": bar,
        "seconds": round(time.process_time() - start, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=ROWS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    judged = "validation" if args.validate else "test"
    keys = ("row", "seed", "goal", "epochs", "judged on")
    known = {json.dumps([r[k] for k in keys]) for r in rows}
    for name in args.rows:
        for seed in range(args.seeds):
            _, _, goal, first, then, _ = ROWS[name]
            if json.dumps([name, seed, goal, [first, then], judged]) in known:
                continue
            rows.append(row(name, seed, args))
            print(json.dumps(rows[-1]), flush=True)
            args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
