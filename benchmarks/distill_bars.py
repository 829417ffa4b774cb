"""What a teacher is worth: three students with one, and without.

    python benchmarks/distill_bars.py hinton [--seeds 5]
    python benchmarks/distill_bars.py lenet5 [--seeds 5]
    python benchmarks/distill_bars.py fashion [--seeds 5]
    python benchmarks/distill_bars.py cached [--rounds 7]

- `hinton`: the networks of Hinton 2015 on MNIST, 784-1200-1200-10 and 784-800-800-10
  with ReLU. The teacher trains with dropout on moved images. Students: on the images as
  they are, `alone` and `distilled`; on moved images, `alone_moved`, `distilled_moved`.
- `lenet5`: Caffe's LeNet-5 on MNIST, in each seed a float parent on moved images; then
  `two_bit` and `ternary` of `quantize_lenet5.py` with `teacher="parent"`.
- `fashion`: ResNet-20 on Fashion-MNIST teaches `dlopt.models.lenet5()`; `alone` and
  `distilled` see the same moved images in the same epochs, `alone_plain` and
  `distilled_plain` the images as they are.
- `cached`: seconds of an epoch of LeNet-5 alone, with the outputs of a teacher in the
  data, and with the teacher in the step, in turns.

Moved images are a fixed number of copies of the training set, each image with a shift,
turn and scale of its own (MNIST) or a flip and a shift (Fashion-MNIST), so that the
teacher runs once; students go through the copies in turn. Trains on the first 55,000
or 50,000 training images; the others chose the settings. The test set is used once a
network. Each finished network is written at once; a run can be stopped and continued,
and networks that are in the file with the same settings are skipped. Teachers are kept
in --cache. `--smoke` runs on a few hundred images and writes nothing.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import quantize_lenet5
import stored
import tensorflow as tf

import keras_dlopt as dlopt
from keras_dlopt import distill

RESULTS = pathlib.Path(__file__).parent / "results" / "distill_bars.json"
BEST = {  # chosen on the validation images
    "hinton": {
        "batch_size": 512,
        "rate": 2e-3,
        "teacher_epochs": 40,
        "dropout": 0.25,
        "copies": 16,
        "epochs": 20,
        "alone_epochs": 10,
        "temperature": 4.0,
    },
    "lenet5": {
        "batch_size": 128,
        "rate": 1.5e-3,
        "parent_epochs": 10,
        "copies": 4,
        "epochs": 8,
        "temperature": 4.0,
    },
    "fashion": {
        "batch_size": 128,
        "rate": 1e-3,
        "teacher_epochs": 5,
        "copies": 3,
        "epochs": 9,
        "temperature": 4.0,
    },
}
KINDS = {
    "hinton": ("distilled_moved", "alone", "distilled", "alone_moved"),
    "lenet5": ("two_bit", "ternary"),
    "fashion": ("alone", "distilled", "alone_plain", "distilled_plain"),
}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Copies:
    """A training set several times, each image moved in its own fixed way.

    Args:
        x: images, (n, height, width, 1).
        y: labels, (n,).
        count: how often; 1 with `how=None` is the set as it is.
        how: `"turn"`, `"flip"` or None.
        seed: of the moves.
    """

    def __init__(self, x, y, count=1, how=None, seed=0):
        self.x, self.y, self.count, self.how = x, y, count, how
        rng = np.random.default_rng(seed)
        self.moves = None if how is None else moves(rng, count * len(x), how)

    def images(self, index):
        """Images of a batch of numbers below `count * n`."""
        x = tf.gather(self.source, index % len(self.x))
        if self.moves is None:
            return x
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=x,
            transforms=tf.gather(self.table, index),
            output_shape=self.x.shape[1:3],
            fill_value=0.0,
            interpolation="BILINEAR",
        )

    def batches(self, order, batch_size, targets=None):
        """Batches in an order; without targets the images alone."""
        self.source = tf.constant(self.x)
        self.table = None if self.moves is None else tf.constant(self.moves)
        kept = {} if targets is None else keras.tree.map_structure(tf.constant, targets)

        def make(index):
            if targets is None:
                return self.images(index)
            y = keras.tree.map_structure(lambda one: tf.gather(one, index), kept)
            return self.images(index), y

        data = tf.data.Dataset.from_tensor_slices(order).batch(
            batch_size, drop_remainder=targets is not None
        )
        options = tf.data.Options()
        options.autotune.enabled = False
        return data.map(make).prefetch(2).with_options(options)

    def outputs(self, teacher, path):
        """Of a teacher, for all copies."""
        every = np.arange(self.count * len(self.x))
        return distill.teacher_outputs(teacher, self.batches(every, 1000), path=path)

    def fit(self, model, args, *, epochs, seed, outputs=None):
        """Trains a compiled model, one copy an epoch, in turn."""
        n, rng = len(self.x), np.random.default_rng(seed)
        order = [rng.permutation(n) + n * (e % self.count) for e in range(epochs)]
        targets = np.tile(self.y, self.count)
        if outputs is not None:
            targets = distill.taught(targets, outputs)
        batches = self.batches(np.concatenate(order), args.batch_size, targets)
        steps = n // args.batch_size
        model.fit(
            batches, epochs=epochs, steps_per_epoch=steps, shuffle=False, verbose=2
        )


def moves(rng, n, how):
    """Rows of `ImageProjectiveTransformV3` for images of 28 pixels, centred."""
    shift = rng.integers(-2, 3, (2, n)).astype("float32")
    across, along = np.zeros((2, n), "float32")
    width = height = np.ones(n, "float32")
    if how == "flip":
        width = rng.choice([-1.0, 1.0], n)
    else:
        angle = np.deg2rad(rng.uniform(-10, 10, n))
        scale = rng.uniform(0.9, 1.1, (2, n))
        width, across = np.cos(angle) * scale[0], -np.sin(angle) * scale[1]
        along, height = np.sin(angle) * scale[0], np.cos(angle) * scale[1]
    middle = 13.5
    right = middle - (width + across) * middle + shift[0]
    down = middle - (along + height) * middle + shift[1]
    zero = np.zeros(n)
    rows = [width, across, right, along, height, down, zero, zero]
    return np.stack(rows, axis=1).astype("float32")


def perceptron(width, dropout=0.0):
    x = inputs = keras.Input((28, 28, 1))
    x = keras.layers.Flatten()(x)
    for _ in range(2):
        x = keras.layers.Dense(width, activation="relu")(x)
        if dropout:
            x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, keras.layers.Dense(10, dtype="float32")(x))


def compiled(model, copies, args, epochs, loss=LOSS):
    steps = epochs * (len(copies.x) // args.batch_size)
    rate = dlopt.schedules.OneCycle(args.rate, steps=steps)
    model.compile(keras.optimizers.Adam(rate), loss)
    return model


def error(model, data):
    guess = model.predict(data[0], batch_size=1000, verbose=0).argmax(1)
    return int(np.sum(guess != data[1]))


def kept(path, make):
    """A model from a file, or made and written."""
    if path.exists():
        return keras.saving.load_model(path, compile=False)
    model = make()
    model.save(path)
    return model


def errors(model, data):
    return {
        "val_error": round(100 * error(model, data.val) / len(data.val[1]), 3),
        "test_error": round(100 * error(model, data.test) / len(data.test[1]), 3),
    }


def taught_by(teacher, student, args):
    return distill.distill(
        student, teacher, distill.LogitsDistillation(args.temperature), copy=False
    )


class Hinton:
    """The perceptrons of Hinton 2015."""

    def __init__(self, data, args):
        self.data, self.args = data, args
        keras.config.set_dtype_policy("mixed_bfloat16")
        self.moved = Copies(*data.train, args.copies, "turn")
        self.plain = Copies(*data.train)
        path = args.cache / f"hinton_{args.teacher_epochs}_{args.dropout}.keras"
        self.teacher = kept(path, self.train_teacher)
        self.about = {"teacher": errors(self.teacher, data)}

    def train_teacher(self):
        keras.utils.set_random_seed(100)
        teacher = perceptron(1200, self.args.dropout)
        compiled(teacher, self.moved, self.args, self.args.teacher_epochs)
        self.moved.fit(teacher, self.args, epochs=self.args.teacher_epochs, seed=100)
        return teacher

    def run(self, kind, seed):
        args = self.args
        keras.utils.set_random_seed(seed)
        copies = self.moved if kind.endswith("moved") else self.plain
        student, outputs, epochs = perceptron(800), None, args.alone_epochs
        model, loss = student, LOSS
        if kind.startswith("distilled"):
            path = args.cache / f"hinton_{kind}.npz"
            outputs = copies.outputs(self.teacher, path)
            model, loss = taught_by(self.teacher, student, args), None
        if kind != "alone":
            epochs = args.epochs
        compiled(model, copies, args, epochs, loss)
        copies.fit(model, args, epochs=epochs, seed=seed, outputs=outputs)
        return {"epochs": epochs, **errors(student, self.data)}


class LeNet5:
    """LeNet-5 in two bits and in three values, with its float parent as teacher."""

    def __init__(self, data, args):
        self.data, self.args, self.about = data, args, {}
        self.moved = Copies(*data.train, args.copies, "turn")

    def parent(self, seed):
        args = self.args

        def make():
            keras.utils.set_random_seed(seed)
            copies = Copies(*self.data.train, args.parent_epochs, "turn", seed)
            model = compiled(dlopt.models.lenet5(), copies, args, args.parent_epochs)
            copies.fit(model, args, epochs=args.parent_epochs, seed=seed)
            return model

        return kept(args.cache / f"lenet5_{args.parent_epochs}_{seed}.keras", make)

    def run(self, kind, seed):
        args = self.args
        parent = self.parent(seed)
        outputs = self.moved.outputs(parent, args.cache / f"lenet5_{seed}.npz")
        keras.utils.set_random_seed(1000 + seed)
        small = dlopt.transform(parent, quantize_lenet5.METHODS[kind]())
        term = distill.LogitsDistillation(args.temperature)
        small = distill.distill(small, "parent", term)
        compiled(small, self.moved, args, args.epochs)
        self.moved.fit(small, args, epochs=args.epochs, seed=seed, outputs=outputs)
        plain = dlopt.finalize(small)
        return {
            "parent_error": errors(parent, self.data)["test_error"],
            "bits_a_kernel_weight": quantize_lenet5.levels(plain),
            **errors(plain, self.data),
        }


class Fashion:
    """LeNet-5 with a ResNet-20 as teacher."""

    def __init__(self, data, args):
        self.data, self.args = data, args
        keras.config.set_dtype_policy("mixed_bfloat16")
        self.moved = Copies(*data.train, args.copies, "flip")
        self.plain = Copies(*data.train)
        path = args.cache / f"fashion_{args.teacher_epochs}.keras"
        self.teacher = kept(path, self.train_teacher)
        self.about = {"teacher": errors(self.teacher, data)}

    def train_teacher(self):
        epochs, batch_size = self.args.teacher_epochs, self.args.batch_size
        keras.utils.set_random_seed(100)
        copies = Copies(*self.data.train, epochs, "flip", 100)
        teacher = dlopt.models.resnet20(input_shape=self.data.input_shape, classes=10)
        dlopt.layers.use_fused(teacher)
        steps = epochs * (len(copies.x) // batch_size)
        rate = dlopt.schedules.OneCycle(0.2, steps=steps)
        optimizer = dlopt.optimizers.SGD(
            rate, momentum=0.9, nesterov=True, weight_decay=1e-3
        )
        teacher.compile(optimizer, LOSS)
        copies.fit(teacher, self.args, epochs=epochs, seed=100)
        return teacher

    def run(self, kind, seed):
        args = self.args
        keras.utils.set_random_seed(seed)
        copies = self.plain if kind.endswith("plain") else self.moved
        model = student = dlopt.models.lenet5()
        outputs, loss = None, LOSS
        if kind.startswith("distilled"):
            path = args.cache / f"fashion_{kind}.npz"
            outputs = copies.outputs(self.teacher, path)
            model, loss = taught_by(self.teacher, student, args), None
        compiled(model, copies, args, args.epochs, loss)
        copies.fit(model, args, epochs=args.epochs, seed=seed, outputs=outputs)
        return errors(student, self.data)


PARTS = {
    "hinton": (Hinton, "mnist"),
    "lenet5": (LeNet5, "mnist"),
    "fashion": (Fashion, "fashion_mnist"),
}


def cached(data, args):
    """Medians of seconds of an epoch, and their ratio to the student alone."""
    x, y = data.train
    teacher, kinds = dlopt.models.resnet20(input_shape=x.shape[1:], classes=10), {}
    outputs = distill.teacher_outputs(teacher, x)
    for kind in ("alone", "cached", "in_step"):
        model = dlopt.models.lenet5()
        if kind != "alone":
            model = distill.distill(model, teacher)
        model.compile("adam", LOSS)
        kinds[kind] = model, distill.taught(y, outputs) if kind == "cached" else y
    seconds = {kind: [] for kind in kinds}
    for round_ in range(args.rounds + 1):
        for kind, (model, target) in kinds.items():
            start = time.process_time()
            model.fit(x, target, batch_size=128, verbose=0)
            if round_:  # the first traces
                seconds[kind].append(round(time.process_time() - start, 2))
    ratios = {
        kind: round(float(np.median(np.divide(values, seconds["alone"]))), 3)
        for kind, values in seconds.items()
    }
    return {"images": len(x), "cpu_seconds": seconds, "ratio": ratios}


def summary(runs):
    """Mean, spread and worst of each kind."""
    made = {}
    for kind in dict.fromkeys(run["kind"] for run in runs):
        values = [run["test_error"] for run in runs if run["kind"] == kind]
        made[kind] = {
            "seeds": len(values),
            "mean": round(float(np.mean(values)), 3),
            "spread": round(float(np.std(values)), 3),
            "worst": max(values),
        }
    return made


def written(part, found, args):
    if args.smoke:
        return
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known = {**known, "machine": stored.machine(), part: found}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")


def measured(part, args):
    """Runs the networks of a part that are not in the file."""
    make, name = PARTS[part]
    data = dlopt.data.load(name)
    if args.smoke:
        data = data.take(640, test=100)
    known = {}
    if RESULTS.exists() and not args.smoke:
        known = json.loads(RESULTS.read_text()).get(part, {})
    settings = {name: getattr(args, name) for name in BEST[part]}
    runs = known["runs"] if known.get("settings") == settings else []
    networks = make(data, args)
    for kind in args.kinds:
        for seed in range(args.seeds):
            if (kind, seed) in {(run["kind"], run["seed"]) for run in runs}:
                continue
            start = time.process_time()
            made = networks.run(kind, seed)
            seconds = round(time.process_time() - start)
            runs.append({"kind": kind, "seed": seed, **made, "cpu_seconds": seconds})
            print(json.dumps(runs[-1]), flush=True)
            found = {"settings": settings, **networks.about}
            found |= {"test_error_percent": summary(runs), "runs": runs}
            written(part, found, args)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="part", required=True)
    for part, best in BEST.items():
        command = commands.add_parser(part)
        command.add_argument("--seeds", type=int, default=5)
        command.add_argument("--kinds", nargs="+", default=KINDS[part])
        command.add_argument("--cache", type=pathlib.Path, default=None)
        for name, value in best.items():
            flag = "--" + name.replace("_", "-")
            command.add_argument(flag, type=type(value), default=value)
    commands.add_parser("cached").add_argument("--rounds", type=int, default=7)
    for command in commands.choices.values():
        command.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.part == "cached":
        data = dlopt.data.load("mnist").take(640 if args.smoke else 20_000)
        args.rounds = 1 if args.smoke else args.rounds
        found = cached(data, args)
        print(json.dumps(found))
        return written("cached", found, args)
    if args.smoke:
        args.seeds, args.copies = 1, 2
        for name in BEST[args.part]:
            if name.endswith("epochs"):
                setattr(args, name, 1)
        args.cache = None
    args.cache = args.cache or pathlib.Path(tempfile.mkdtemp())
    args.cache.mkdir(parents=True, exist_ok=True)
    return measured(args.part, args)


if __name__ == "__main__":
    main()
