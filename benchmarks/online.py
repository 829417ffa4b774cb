"""Online learning: how fast after a drift, and how much after five tasks.

    KERAS_DLOPT_DATA=... python benchmarks/online.py drift split [--seeds 5]
    KERAS_DLOPT_DATA=... python benchmarks/online.py try-drift try-split

`drift`: MNIST images in segments of 10,000, one concept each, a 784-128-10 network, 16
samples a batch. `labels`: the labels turned by one from the second segment on.
`pixels`: permuted from the second segment on. Before is the prequential accuracy of the
last 2,000 samples before the drift, each learner's own; back is the first sample after
the drift at which the mean of the last 500, all after it, is within 1 point of that; it
is null where that does not happen. The curve has that mean after 500, 600, ... samples.

`split`: five tasks of two classes in order, one head, one pass, 500 kept images, a
small CNN (two strided convolutions, 16 and 32 channels); accuracy on the test images
of all ten classes.

`try-...`: what the settings were chosen with, other seeds and validation images. Rows
that are in the results already are not measured again.
"""

# ruff: noqa: E402  the environment must be set before TensorFlow starts
import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
for _name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import filelock
import keras
import numpy as np

from keras_dlopt import data, online

RESULTS = pathlib.Path(__file__).parent / "results" / "online.json"
L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SEGMENT, WINDOW = 10_000, 500
# 1 where the pixels of a segment are permuted, or its labels turned.
SEGMENTS = {"labels": (0, 1), "pixels": (0, 1)}
CHOSEN = {
    "sgd": {"labels": 0.2, "pixels": 0.2},
    "labels": {"rate": 0.02, "steps": 4, "rows": 48, "memory": 2000, "factor": 2.0},
    "pixels": {"rate": 0.02, "steps": 4, "rows": 48, "memory": 2000, "factor": 2.0},
    "mnist": {"alpha": 0.5, "epochs": 60, "shift": 0.1, "rate": 1e-3},
    "fashion_mnist": {"alpha": 0.0, "epochs": 60, "shift": 0.05, "rate": 1e-3},
}


def drifting(kind, seed):
    """A stream with abrupt drifts: inputs and labels."""
    x, y = data.load("mnist").train
    rng = np.random.default_rng(seed)
    places = rng.permutation(len(x))[: len(SEGMENTS[kind]) * SEGMENT]
    x, y = x[places].reshape(-1, 784), np.array(y[places], "int64")
    pixels = rng.permutation(784)
    for number, other in enumerate(SEGMENTS[kind]):
        part = slice(number * SEGMENT, (number + 1) * SEGMENT)
        if other and kind == "labels":
            y[part] = (y[part] + 1) % 10
        elif other:
            x[part] = x[part][:, pixels]
    return x, y


def perceptron(rate, seed, momentum=0.0):
    keras.utils.set_random_seed(seed)
    net = keras.Sequential(
        [keras.Input((784,)), L.Dense(128, activation="relu"), L.Dense(10)]
    )
    net.compile(keras.optimizers.SGD(rate, momentum=momentum), LOSS)
    return net


def back_after(errors):
    """Accuracy before the drift, samples until it is within 1 point, and the curve."""
    before = 1 - errors[SEGMENT - 2000 : SEGMENT].mean()
    sums = np.r_[0, np.cumsum(1 - errors[SEGMENT:])]
    means = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW
    good = np.flatnonzero(means >= before - 0.01)
    back = int(good[0]) + WINDOW if len(good) else None
    return float(before), back, " ".join(f"{m:.3f}" for m in means[::100])


def drift_row(kind, seed, learner):
    x, y = drifting(kind, seed)
    start = time.process_time()
    errors = learner.learn(x, y).errors
    before, back, curve = back_after(errors)
    return {
        "before": round(before, 4),
        "back": back,
        "curve": curve,
        "mean_accuracy": round(float(1 - errors.mean()), 4),
        "drifts": str(learner.drifts),
        "cpu_s": round(time.process_time() - start, 1),
    }


def plain_sgd(kind, seed, rate):
    net = perceptron(rate, seed)
    learner = online.OnlineLearner(net, batch_size=16, memory=None)
    return drift_row(kind, seed, learner)


def reacting(kind, seed, *, rate, steps, rows, memory, factor):
    net = perceptron(rate, seed, momentum=0.9)
    learner = online.OnlineLearner(
        net,
        batch_size=16,
        memory=online.Reservoir(memory),
        replay=online.Replay(rows=rows, steps=steps),
        drift=online.ADWIN(),
        on_drift=online.OnDrift(factor, half_life=1000, forget=True, recent=32),
        seed=seed,
    )
    return drift_row(kind, seed, learner)


def cnn(rate, seed):
    keras.utils.set_random_seed(seed)
    net = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            L.Conv2D(16, 5, strides=2, padding="same", activation="relu"),
            L.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            L.Flatten(),
            L.Dense(128, activation="relu"),
            L.Dense(10),
        ]
    )
    net.compile(keras.optimizers.Adam(rate), LOSS)
    return net


def split_row(name, seed, *, alpha, epochs, shift, rate, validate=False):
    """Five tasks of two classes; accuracy before and after the rehearsal."""
    found = data.load(name)
    x, y = found.train
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    tasks = [order[y[order] // 2 == task] for task in range(5)]
    start = time.process_time()
    net = cnn(rate, seed)
    learner = online.OnlineLearner(
        net,
        batch_size=32,
        memory=online.ClassBalanced(500),
        replay=online.Replay(
            rows=32, augment=L.RandomTranslation(shift, shift, seed=seed)
        ),
        terms=[online.DarkExperience(alpha)] if alpha else [],
        seed=seed,
    )
    for places in tasks:
        learner.learn(x[places], y[places])
    learner.flush()
    tested = found.val if validate else found.test

    def accuracy():
        return float((learner.predict(tested[0]).argmax(-1) == tested[1]).mean())

    before = accuracy()
    learner.rehearse(epochs)
    return {
        "accuracy": round(accuracy(), 4),
        "before_rehearsal": round(before, 4),
        "kept": learner.kept,
        "samples": learner.seen,
        "parameters": net.count_params(),
        "cpu_s": round(time.process_time() - start, 1),
    }


def jobs(parts, seeds):
    """Name -> what measures it."""
    found = {}
    for kind in SEGMENTS:
        if "try-drift" in parts:
            for rate in (0.1, 0.2, 0.4):
                found[f"try/{kind}/sgd/{rate}"] = lambda k=kind, r=rate: plain_sgd(
                    k, 100, r
                )
            for rate in (0.01, 0.02):
                for steps in (2, 4):
                    given = {**CHOSEN[kind], "rate": rate, "steps": steps}
                    name = f"try/{kind}/reacting/{rate}/{steps}"
                    found[name] = lambda k=kind, g=given: reacting(k, 100, **g)
        for seed in range(seeds if "drift" in parts else 0):
            found[f"drift/{kind}/sgd/{seed}"] = lambda k=kind, s=seed: plain_sgd(
                k, s, CHOSEN["sgd"][k]
            )
            found[f"drift/{kind}/reacting/{seed}"] = lambda k=kind, s=seed: reacting(
                k, s, **CHOSEN[k]
            )
    for name in ("mnist", "fashion_mnist"):
        if "try-split" in parts:
            for alpha in (0.0, 0.5):
                given = {**CHOSEN[name], "alpha": alpha}
                found[f"try/split/{name}/{alpha}"] = lambda n=name, g=given: split_row(
                    n, 100, validate=True, **g
                )
        for seed in range(seeds if "split" in parts else 0):
            found[f"split/{name}/{seed}"] = lambda n=name, s=seed: split_row(
                n, s, **CHOSEN[n]
            )
    return found


def measured(todo, out):
    """Measures rows one after the other; each is written at once."""
    for name, measure in todo:
        row = measure()
        with filelock.FileLock(f"{out}.lock"):
            found = json.loads(out.read_text()) if out.exists() else {}
            found[name] = row
            out.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--match", default="", help="rows with this in their name")
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    todo = [
        (name, measure)
        for name, measure in jobs(args.parts, args.seeds).items()
        if name not in found and args.match in name
    ]
    children = []
    for number in range(args.processes):
        child = os.fork()  # nothing of TensorFlow has started yet
        if not child:
            measured(todo[number :: args.processes], args.out)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
