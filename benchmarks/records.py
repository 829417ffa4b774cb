"""Bytes against error of fixed networks, trained towards few bytes (`RateAware`).

    KERAS_DLOPT_DATA=... nice -n 19 python benchmarks/records.py [--rows lenet5]

A network is trained in float, then under one recipe, `RateAware` on all kernels and
biases; the file is written, read back, and judged. It trains on the training images
but for the last 5,000 of MNIST (10,000 of Fashion-MNIST), on which the settings were
chosen, without augmentation and without a teacher unless the row says so. `--validate`
judges on those, with `--set goal=5000 then=30` of other settings than the row's;
without it the test images are used, once a network, setting and seed. A finished row
is written at once and not run again.
"""

import argparse
import dataclasses
import functools
import hashlib
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
from distill_copies import Copies
from keras import layers, ops
from keras.optimizers import Adam
from records_cut import CUTS, EARLY, Cutting

import keras_dlopt as dlopt

RESULTS = pathlib.Path(__file__).parent / "results" / "records.json"
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@dataclasses.dataclass(frozen=True)
class Row:
    """How a network is trained.

    Attributes:
        data: name of the data set.
        network: name in `NETWORKS`.
        goal: bytes of all codes that the price is steered to.
        first: epochs in float.
        then: epochs under the recipe.
        bar: bytes of the file and error in percent that are asked for; None where it is
            0.3 point over the float network's.
        batch: examples.
        rate: learning rate under the recipe.
        dropout: of the outputs of hidden layers, while training.
        copies: of the training set, each image moved otherwise in each; 1 is the plain
            set.
        moves: how, as of `Copies`.
        cuts: as of `Cutting.train`.
        width: hidden units of a teacher on the same copies, an ordinary network; 0 for
            none.
    """

    data: str
    network: str
    goal: int
    first: int
    then: int
    bar: tuple[int, float | None]
    batch: int = 256
    rate: float = 1e-3
    dropout: float = 0.0
    copies: int = 1
    moves: str | None = None
    cuts: tuple[float, ...] = CUTS
    width: int = 0


PLAIN = Row("mnist", "lenet_300_100", 8_000, 5, 24, (7_500, 1.9))
MOVED = dataclasses.replace(
    PLAIN,
    first=20,
    batch=512,
    copies=10,
    moves="bend",
    cuts=EARLY,
    goal=5_000,
    then=40,
)
LENET5 = Row("mnist", "lenet5", 2_500, 2, 14, (2_800, 0.85))
ROWS = {
    "lenet_300_100": PLAIN,
    "lenet_300_100_moved": dataclasses.replace(MOVED, bar=(4_500, 1.58)),
    "lenet_300_100_moved_3000": dataclasses.replace(
        MOVED, goal=3_700, then=60, bar=(3_000, 1.58)
    ),
    "lenet5": LENET5,
    "lenet5_moved": dataclasses.replace(
        LENET5, goal=2_400, first=6, then=20, copies=10, moves="bend", cuts=EARLY
    ),
    "lenet5_near": Row("mnist", "lenet5", 1_500, 3, 16, (1_500, 0.98)),
    "fashion_lenet_300_100": Row(
        "fashion_mnist", "lenet_300_100", 14_000, 5, 16, (15_000, None)
    ),
    "fashion_lenet5": Row("fashion_mnist", "lenet5", 5_500, 3, 16, (6_000, None)),
}


def lenet_300_100():
    dense = [layers.Dense(300, "relu"), layers.Dense(100, "relu"), layers.Dense(10)]
    return [layers.Flatten(), *dense]


def lenet5():
    """Caffe's."""
    first = [layers.Conv2D(20, 5), layers.MaxPooling2D()]
    second = [layers.Conv2D(50, 5), layers.MaxPooling2D(), layers.Flatten()]
    return [*first, *second, layers.Dense(500, "relu"), layers.Dense(10)]


# Names that Keras gives cost nothing in a file.
NETWORKS = {"lenet_300_100": lenet_300_100, "lenet5": lenet5}


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


class Trainer:
    """Trains models of one row on the same images in the same way."""

    def __init__(self, row, seed):
        self.row, self.data = row, dlopt.data.load(row.data)
        x, y = self.data.train
        self.copies = Copies(x, y, row.copies, row.moves, seed=seed)
        self.steps = len(x) // row.batch
        self.rng, self.copy = np.random.default_rng(seed), 0

    def fit(self, model, optimizer, epochs, outputs=None):
        """Trains a model for some epochs, each on the next copy, in turn."""
        n, size = len(self.copies.x), self.steps * self.row.batch
        order = []
        for _ in range(epochs):
            order.append(self.rng.permutation(n)[:size] + n * self.copy)
            self.copy = (self.copy + 1) % self.copies.count
        y = np.tile(self.copies.y, self.copies.count)
        targets = y if outputs is None else dlopt.distill.taught(y, outputs)
        batches = self.copies.batches(np.concatenate(order), self.row.batch, targets)
        # On a processor XLA takes a fifth less time for dense layers, 2.5 times as much
        # for convolutions and poolings, and 9 times with the numbers of dropout.
        xla = self.row.network == "lenet_300_100" and not self.row.dropout
        model.compile(optimizer, LOSS, steps_per_execution=10, jit_compile=xla)
        steps = epochs * self.steps
        model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)

    def teacher(self):
        """An ordinary network, trained on the copies, and its outputs for them."""
        units = self.row.width
        parts = [layers.Flatten(), layers.Dense(units, "relu"), layers.Dropout(0.3)]
        parts += [layers.Dense(units, "relu"), layers.Dropout(0.3), layers.Dense(10)]
        found = keras.Sequential([keras.Input(self.data.input_shape), *parts])
        self.fit(found, Adam(Falling(1e-3, 20 * self.steps)), 20)
        every = np.arange(len(self.copies.x) * self.copies.count)
        return found, found.predict(self.copies.batches(every, 1000), verbose=0)


def kept(make, folder, what):
    """The files that `make(place)` writes for some settings, and what it returns.

    With a folder they are made once: the same training is judged on validation images
    first, and on test images if these settings were chosen.
    """
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    place = pathlib.Path(folder or tempfile.mkdtemp()) / name
    facts = place / "facts.json"
    if not facts.exists():
        place.mkdir(parents=True, exist_ok=True)
        facts.write_text(json.dumps(make(place)))
    return place, json.loads(facts.read_text())


def made(row, seed, place):
    """Trains and codes one network."""
    start = time.process_time()
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    trainer = Trainer(row, seed)
    teacher, outputs = trainer.teacher() if row.width else (None, None)
    keras.backend.clear_session()
    inputs = keras.Input(trainer.data.input_shape)
    net = keras.Sequential([inputs, *NETWORKS[row.network]()])
    left = Cutting(net, row.dropout)
    training = left.build()
    cosine = keras.optimizers.schedules.CosineDecay(2e-3, row.first * trainer.steps)
    trainer.fit(training, Adam(cosine), row.first)
    left.fill(training)
    net.save(place / "float.keras", include_optimizer=False)
    total = row.then * trainer.steps
    rate_aware = dlopt.RateAware(row.goal, end=total)

    def fit(small, optimizer, epochs):
        if teacher is not None:
            small = dlopt.distill.distill(small, teacher, copy=False)
        trainer.fit(small, optimizer, epochs, outputs)

    recipe = dlopt.Recipe([(dlopt.rank(1, 2, 4), rate_aware)])
    adam = functools.partial(Adam, Falling(row.rate, total))
    left.train(recipe, adam, fit, row.then, row.cuts)
    ledger = dlopt.save_compressed(net, place / "model.dlopt")
    seconds = time.process_time() - start
    if row.bar[1] is None:
        found = as_long(trainer, row, seed)
        found.save(place / "as_long.keras", include_optimizer=False)
    return {
        "plain_bytes": ledger.plain_bytes,
        "architecture_bytes": ledger.architecture_bytes,
        "record_bytes": [math.ceil(one.bits / 8) for one in ledger.rows],
        "seconds": round(seconds, 1),
    }


def run(name, row, seed, judged, folder):
    """Trains, codes and judges one network."""
    what = identity(name, row, seed, "any")
    place, facts = kept(lambda place: made(row, seed, place), folder, what)
    data = dlopt.data.load(row.data)
    examples = data.val if judged == "validation" else data.test
    floats = {"error_float": place / "float.keras"}
    if row.bar[1] is None:
        floats["error_float_as_long"] = place / "as_long.keras"
    path = place / "model.dlopt"
    return {
        **identity(name, row, seed, judged),
        "bytes": path.stat().st_size,
        "error": round(error(dlopt.load_compressed(path), *examples), 2),
        **{
            key: round(error(keras.models.load_model(one, compile=False), *examples), 2)
            for key, one in floats.items()
        },
        "bar": row.bar,
        **facts,
    }


def as_long(trainer, row, seed):
    """The network in float, with as many epochs as the other has in all."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(trainer.data.input_shape)
    net = keras.Sequential([inputs, *NETWORKS[row.network]()])
    epochs = row.first + row.then
    falling = keras.optimizers.schedules.CosineDecay(2e-3, epochs * trainer.steps)
    trainer.fit(net, Adam(falling), epochs)
    return net


def identity(name, row, seed, judged):
    """What tells a finished row from others."""
    settings = dataclasses.asdict(row) | {"cuts": list(row.cuts)}
    del settings["bar"]
    return {"row": name, "seed": seed, **settings, "judged on": judged}


def asked(doc, rows, seeds, results):
    """The options, changed settings by name, and what rows are judged on."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--rows", nargs="+", default=[*rows], choices=rows)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--set", nargs="+", default=[], metavar="SETTING=VALUE")
    parser.add_argument("--keep", help="folder for networks that are made once")
    parser.add_argument("--out", type=pathlib.Path, default=results)
    args = parser.parse_args()
    if args.set and not args.validate:
        parser.error("settings are chosen with --validate")
    changed = {k: json.loads(v) for k, v in (one.split("=") for one in args.set)}
    return args, changed, "validation" if args.validate else "test"


def add(out, wanted, make):
    """Adds what `make()` returns to the rows in a file, if it is not there yet."""
    rows = json.loads(out.read_text()) if out.exists() else []
    if not any(wanted.items() <= one.items() for one in rows):
        rows.append(make())
        print(json.dumps(rows[-1]), flush=True)
        out.write_text(json.dumps(rows, indent=1) + "\n")


def main():
    args, changed, judged = asked(__doc__, ROWS, 5, RESULTS)
    for name in args.rows:
        row = dataclasses.replace(ROWS[name], **changed)
        for seed in range(args.seeds):
            make = functools.partial(run, name, row, seed, judged, args.keep)
            add(args.out, identity(name, row, seed, judged), make)


if __name__ == "__main__":
    main()
