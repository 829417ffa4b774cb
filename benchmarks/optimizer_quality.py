"""Steps and time to a fixed accuracy, for every method; and what 8-bit state costs.

A LeNet-300-100 with batches of 128. Each method's learning rate is tuned on one seed
over a grid of the same size, by the steps to the target on the validation split; then
fresh seeds are run, all methods in turn for each seed. The rate is constant. Training
time counts updates only, not evaluation.

    KERAS_DLOPT_DATA=... python benchmarks/optimizer_quality.py steps [--seeds 3]
    KERAS_DLOPT_DATA=... python benchmarks/optimizer_quality.py eight_bit [--seeds 5]
"""

import argparse
import json
import os
import pathlib
import platform
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from keras_dlopt import data, optimizers

RESULTS = pathlib.Path(__file__).parent / "results"
BATCH = 128
TARGETS = {"fashion_mnist": 0.86, "mnist": 0.975}

o = optimizers
METHODS = {
    "AdamW": (lambda lr: o.AdamW(lr, weight_decay=0.004), (5e-4, 1e-3, 2e-3, 4e-3)),
    "SGD momentum": (lambda lr: o.SGD(lr, momentum=0.9), (0.02, 0.05, 0.1, 0.2)),
    "SOAP": (lambda lr: o.SOAP(lr), (5e-4, 1e-3, 2e-3, 4e-3)),
    "AdEMAMix": (lambda lr: o.AdEMAMix(lr), (2.5e-4, 5e-4, 1e-3, 2e-3)),
    "ADOPT": (lambda lr: o.ADOPT(lr), (5e-4, 1e-3, 2e-3, 4e-3)),
    "MARS": (lambda lr: o.MARS(lr), (5e-4, 1e-3, 2e-3, 4e-3)),
    "Adan": (lambda lr: o.Adan(lr), (1e-3, 2e-3, 4e-3, 8e-3)),
    "Prodigy": (lambda lr: o.Prodigy(lr), (0.5, 1.0, 2.0, 4.0)),
    "RAdam": (lambda lr: o.RAdam(lr), (1e-3, 2e-3, 4e-3, 8e-3)),
    "AdaBelief": (lambda lr: o.AdaBelief(lr, epsilon=1e-12), (5e-4, 1e-3, 2e-3, 4e-3)),
    "LARS": (lambda lr: o.LARS(lr, trust=0.01), (0.5, 1.0, 2.0, 4.0)),
    "Adam8bit": (
        lambda lr: o.Adam8bit(lr, weight_decay=0.004),
        (5e-4, 1e-3, 2e-3, 4e-3),
    ),
    "Lookahead Adam": (lambda lr: o.Lookahead(o.Adam(lr)), (1e-3, 2e-3, 4e-3, 8e-3)),
    "ScheduleFree Adam": (
        lambda lr: o.ScheduleFree(o.Adam(lr, beta_1=0.0)),
        (1e-3, 2e-3, 4e-3, 8e-3),
    ),
    "AdamW cautious": (
        lambda lr: o.AdamW(lr, weight_decay=0.004, cautious=True),
        (5e-4, 1e-3, 2e-3, 4e-3),
    ),
}


def network(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(300, activation="relu"),
            keras.layers.Dense(100, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


class Run:
    """One training, in chunks of steps that run without returning to Python."""

    def __init__(self, make, sets, seed):
        self.model = network(seed)
        self.optimizer = make()
        self.optimizer.build(self.model.trainable_variables)
        self.rng = np.random.default_rng(seed)
        self.x, self.y = (tf.constant(a) for a in sets["train"])
        self.held = sets["validation"]
        self.seconds = 0.0
        self.order = np.empty(0, np.int64)
        loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        weights = self.model.trainable_variables

        @tf.function
        def chunk(rows):
            for i in tf.range(tf.shape(rows)[0]):
                x, y = tf.gather(self.x, rows[i]), tf.gather(self.y, rows[i])
                with tf.GradientTape() as tape:
                    loss = loss_of(y, self.model(x, training=True))
                self.optimizer.apply(tape.gradient(loss, weights), weights)

        self.chunk = chunk

    def train(self, steps):
        while len(self.order) < steps * BATCH:
            fresh = self.rng.permutation(len(self.x))
            self.order = np.concatenate([self.order, fresh])
        rows = self.order[: steps * BATCH].reshape(steps, BATCH)
        self.order = self.order[steps * BATCH :]
        start = time.perf_counter()
        self.chunk(tf.constant(rows))
        self.seconds += time.perf_counter() - start

    def warm_up(self):
        """Traces the graph outside the clock."""
        self.chunk(tf.zeros((0, BATCH), tf.int64))

    def accuracy(self, held=None):
        x, y = held or self.held
        return float(np.mean(np.argmax(self.model(x).numpy(), axis=1) == y))

    def to_target(self, target, *, limit, every=25):
        """Steps and seconds to the target, None when it is not reached."""
        self.warm_up()
        done = 0
        while done < limit:
            self.train(every)
            done += every
            if isinstance(self.optimizer, o.ScheduleFree):
                with self.optimizer.averaged_weights():
                    found = self.accuracy()
            else:
                found = self.accuracy()
            if found >= target:
                return {"steps": done, "seconds": self.seconds}
        return None


def load(name):
    found = data.load(name, validation=5000 if name == "mnist" else 10000)
    parts = {
        "train": (found.x_train, found.y_train),
        "validation": (found.x_val, found.y_val),
        "test": (found.x_test, found.y_test),
    }
    return {
        k: (np.reshape(x, (-1, 784)).astype("float32"), y.astype("int32"))
        for k, (x, y) in parts.items()
    }


def tune(make, rates, sets, target, limit):
    scores = {}
    for lr in rates:
        found = Run(lambda lr=lr: make(lr), sets, 100).to_target(target, limit=limit)
        scores[lr] = found["steps"] if found else None
    reached = {lr: steps for lr, steps in scores.items() if steps is not None}
    return (min(reached, key=reached.get) if reached else None), scores


def steps(name, seeds, limit, names):
    sets, target = load(name), TARGETS[name]
    chosen, tuned = {}, {}
    for method in names:
        make, rates = METHODS[method]
        best, tuned[method] = tune(make, rates, sets, target, limit)
        if best is not None:
            chosen[method] = best
        print(method, tuned[method], flush=True)
    runs = {method: [] for method in chosen}
    for seed in range(seeds):
        for method, lr in chosen.items():
            make = METHODS[method][0]
            run = Run(lambda make=make, lr=lr: make(lr), sets, seed)
            runs[method].append(run.to_target(target, limit=limit))
    peer = runs.get("AdamW", [None] * seeds)
    table = {}
    for method, found in runs.items():
        pairs = [(a, b) for a, b in zip(peer, found, strict=True) if a and b]
        table[method] = {
            "learning_rate": chosen[method],
            "reached": sum(f is not None for f in found),
            "steps": [f and f["steps"] for f in found],
            "fewer_steps_than_AdamW": _mean(
                [a["steps"] / b["steps"] for a, b in pairs]
            ),
            "less_time_than_AdamW": _mean(
                [a["seconds"] / b["seconds"] for a, b in pairs]
            ),
        }
    missed = [m for m in names if m not in chosen]
    return {
        "target": target,
        "limit": limit,
        "tuning": tuned,
        "table": table,
        "target_not_reached_in_tuning": missed,
    }


def _mean(values):
    return round(float(np.exp(np.mean(np.log(values)))), 3) if values else None


def eight_bit(name, seeds, epochs):
    """Test accuracy after training on all but the validation split, by seed."""
    sets = load(name)
    made = {"AdamW": o.AdamW, "Adam8bit": o.Adam8bit}
    decay = keras.optimizers.schedules.CosineDecay
    found = {method: [] for method in made}
    total = epochs * (len(sets["train"][0]) // BATCH)
    for seed in range(seeds):
        for method, cls in made.items():
            run = Run(
                lambda cls=cls: cls(decay(1e-3, total), weight_decay=0.004), sets, seed
            )
            run.train(total)
            found[method].append(round(100 * run.accuracy(sets["test"]), 2))
            if method == "Adam8bit":
                state = run.optimizer.variables[1:]  # without the step counter
                held = sum(np.prod(v.shape) * np.dtype(v.dtype).itemsize for v in state)
                size = sum(np.prod(w.shape) for w in run.model.trainable_variables)
    means = {method: float(np.mean(values)) for method, values in found.items()}
    return {
        "epochs": epochs,
        "test_accuracy": found,
        "mean": means,
        "difference": round(means["Adam8bit"] - means["AdamW"], 3),
        "state_bytes_per_parameter": round(float(held / size), 3),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["steps", "eight_bit"])
    parser.add_argument("--data", default="fashion_mnist", choices=list(TARGETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    arguments = parser.parse_args()
    if arguments.what == "steps":
        result = steps(
            arguments.data, arguments.seeds, arguments.limit, arguments.methods
        )
    else:
        result = eight_bit(arguments.data, arguments.seeds, arguments.epochs)
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared",
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
        "network": "784-300-100-10, batch 128",
        "data": arguments.data,
        "seeds": arguments.seeds,
        **result,
    }
    print(json.dumps(report, indent=1))
    path = RESULTS / f"optimizer_{arguments.what}_{arguments.data}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
