"""Steps and time to a fixed accuracy, for every method; and what 8-bit state costs.

Batches of 128. Each method's learning rate is tuned on one seed over a grid of the same
size, by the steps to the target on the validation split; then fresh seeds are run, all
methods in turn for each seed. The rate is constant. Training time counts updates only,
not evaluation: wall-clock, and the process's CPU time, which other load disturbs less.
A run that was stopped goes on where it was when started again.

    KERAS_DLOPT_DATA=... python benchmarks/optimizer_quality.py steps [--seeds 3]
        [--network lenet5]
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

from keras_dlopt import data, models, optimizers

RESULTS = pathlib.Path(__file__).parent / "results"
BATCH = 128
NETWORKS = ("lenet_300_100", "lenet5", "small_cnn")
TARGETS = {
    ("fashion_mnist", "lenet_300_100"): 0.86,
    ("mnist", "lenet_300_100"): 0.975,
    ("fashion_mnist", "lenet5"): 0.86,
    ("mnist", "lenet5"): 0.985,
    ("fashion_mnist", "small_cnn"): 0.82,
    ("mnist", "small_cnn"): 0.96,
}

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


def network(name, seed):
    keras.utils.set_random_seed(seed)
    if name == "small_cnn":
        return keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                keras.layers.Conv2D(8, 3, strides=2, activation="relu"),
                keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
                keras.layers.Flatten(),
                keras.layers.Dense(10),
            ]
        )
    return getattr(models, name)()


class Run:
    """One training, in chunks of steps that run without returning to Python."""

    def __init__(self, make, sets, seed, name="lenet_300_100"):
        self.model = network(name, seed)
        self.optimizer = make()
        self.optimizer.build(self.model.trainable_variables)
        self.rng = np.random.default_rng(seed)
        self.x, self.y = (tf.constant(a) for a in sets["train"])
        self.held = sets["validation"]
        self.seconds = self.cpu = 0.0
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
        start, cpu = time.perf_counter(), time.process_time()
        self.chunk(tf.constant(rows))
        self.seconds += time.perf_counter() - start
        self.cpu += time.process_time() - cpu

    def warm_up(self):
        """Traces the graph outside the clock."""
        self.chunk(tf.zeros((0, BATCH), tf.int64))

    def accuracy(self, held=None):
        x, y = held or self.held
        parts = [self.model(x[i : i + 1000]) for i in range(0, len(x), 1000)]
        return float(np.mean(np.argmax(np.concatenate(parts), axis=1) == y))

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
                return {"steps": done, "seconds": self.seconds, "cpu": self.cpu}
        return None


def load(name):
    found = data.load(name, validation=5000 if name == "mnist" else 10000)
    parts = {
        "train": (found.x_train, found.y_train),
        "validation": (found.x_val, found.y_val),
        "test": (found.x_test, found.y_test),
    }
    return {
        k: (np.reshape(x, (-1, 28, 28, 1)).astype("float32"), y.astype("int32"))
        for k, (x, y) in parts.items()
    }


class Steps:
    """The runs to the target so far, in a file, and what they say."""

    def __init__(self, path, name, net, limit, held):
        self.path, self.net, self.limit = path, net, limit
        self.target, self.sets = TARGETS[name, net], load(name)
        x, y = self.sets["validation"]
        self.sets["validation"] = x[:held], y[:held]
        self.report = {
            **about(name, net),
            "target": self.target,
            "limit": limit,
            "images_judged_by": len(self.sets["validation"][0]),
            "threads": tf.config.threading.get_intra_op_parallelism_threads(),
            "tuning": {},
            "runs": {},
        }
        if path.exists():
            self.report |= json.loads(path.read_text())

    def one(self, method, lr, seed):
        make = METHODS[method][0]
        run = Run(lambda: make(lr), self.sets, seed, self.net)
        return run.to_target(self.target, limit=self.limit)

    def tune(self, method):
        """The rate with the fewest steps; None where none reached the target."""
        scores = self.report["tuning"].setdefault(method, {})
        for lr in METHODS[method][1]:
            if str(lr) not in scores:
                found = self.one(method, lr, 100)
                scores[str(lr)] = found and found["steps"]
                self.save()
        reached = {float(k): v for k, v in scores.items() if v is not None}
        return min(reached, key=reached.get) if reached else None

    def run(self, names, seeds):
        chosen = {method: self.tune(method) for method in names}
        for seed in range(seeds):
            for method, lr in chosen.items():
                done = self.report["runs"].setdefault(method, {})
                if lr is not None and str(seed) not in done:
                    done[str(seed)] = self.one(method, lr, seed)
                    self.save()

    def save(self):
        self.report["table"] = {m: self.row(m) for m in self.report["runs"]}
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(self.report, indent=1) + "\n")

    def row(self, method):
        runs, peer = self.report["runs"][method], self.report["runs"].get("AdamW", {})
        pairs = [(peer[k], r) for k, r in runs.items() if r and peer.get(k)]
        return {
            "seeds": len(runs),
            "reached": sum(r is not None for r in runs.values()),
            **{
                f"{what}_less_than_AdamW": _mean([a[what] / b[what] for a, b in pairs])
                for what in ("steps", "seconds", "cpu")
            },
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
    parser.add_argument(
        "--data", default="fashion_mnist", choices=["mnist", "fashion_mnist"]
    )
    parser.add_argument("--network", default="lenet_300_100", choices=NETWORKS)
    parser.add_argument("--held", type=int, default=10000, help="images to judge by")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    arguments = parser.parse_args()
    name = f"optimizer_{arguments.what}_{arguments.data}"
    if arguments.what == "steps":
        path = RESULTS / f"{name}_{arguments.network}.json"
        steps = Steps(
            path,
            arguments.data,
            arguments.network,
            arguments.limit,
            arguments.held,
        )
        steps.run(arguments.methods, arguments.seeds)
        print(json.dumps(steps.report["table"], indent=1))
        return
    report = about(arguments.data, "lenet_300_100") | eight_bit(
        arguments.data, arguments.seeds, arguments.epochs
    )
    print(json.dumps(report, indent=1))
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")


def about(name, net):
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared",
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
        "network": f"{net}, batch {BATCH}",
        "data": name,
    }


if __name__ == "__main__":
    main()
