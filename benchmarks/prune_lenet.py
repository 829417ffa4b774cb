"""LeNet-300-100 and LeNet-5 (Caffe) with as few weights as possible, on MNIST.

    python benchmarks/prune_lenet.py --network lenet_300_100
    python benchmarks/prune_lenet.py --network lenet5

For each seed: the dense network is trained; then one recipe entry prunes all kernels
together by magnitude on a polynomial schedule, while the network learns the labels and
the dense network's logits. LeNet-300-100 has one threshold for all layers (`Global()`).
That leaves LeNet-5's first convolution too little, so its layers get about the shares
that sparse variational dropout found (arXiv:1701.05369, table 1; `BySensitivity`).
Both trainings see images shifted by up to one pixel, a share `--shift` of them. Nothing
but the dense network's logits and weights is handed on, and the teacher has the
architecture of the student.

LeNet-300-100's settings in `SETTINGS` were chosen at 98.6 % with `--validate`, which
trains on the first 55,000 images and reports on the last 5,000; at 98 % they were used
unchanged, after the test errors at 98.6 % were known. LeNet-5's shares come from the
paper and were not validated. Without `--validate` all 60,000 train, and each seed uses
the test images once, after its last step. A finished seed is appended to
`benchmarks/results/prune_<network>_<percent>.json` at once; a second call goes on with
the seeds that are missing. Sparsity is the share of zeros among the kernels' weights.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import keras_dlopt as dlopt
from keras_dlopt import data, models, report
from keras_dlopt.schedules import Join, PolynomialSparsity
from keras_dlopt.transforms.prune import BySensitivity, Global

RESULTS = pathlib.Path(__file__).parent / "results"
BARS = {"lenet_300_100": (0.98, 1.7), "lenet5": (0.995, 0.85)}
AIMS = {"lenet_300_100": (0.986, 1.6), "lenet5": (0.9965, 0.75)}
# Kept weights by layer, of LeNet-5 at 99.5 and 99.65 %.
KEPT = {
    0.995: {"conv1": 190, "conv2": 640, "ip1": 1054, "ip2": 270},
    0.9965: {"conv1": 160, "conv2": 450, "ip1": 682, "ip2": 215},
}
SIZES = {"conv1": 500, "conv2": 25_000, "ip1": 400_000, "ip2": 5_000}
# teacher, epochs: epochs of the dense and of the sparse training; end: share of the
# sparse training after which the mask is final; distill: weight of the teacher's
# logits; rate: at the start of the sparse training.
SETTINGS = {
    "lenet_300_100": {
        "sparsity": 0.98,
        "teacher": 20,
        "epochs": 80,
        "end": 0.6,
        "rate": 2e-3,
        "distill": 0.9,
        "temperature": 3.0,
        "shift": 0.5,
        "batch": 128,
    },
    "lenet5": {
        "sparsity": 0.99502,
        "teacher": 8,
        "epochs": 30,
        "end": 0.6,
        "rate": 2e-3,
        "distill": 0.9,
        "temperature": 3.0,
        "shift": 0.5,
        "batch": 128,
    },
}
SHIFTS = [(dy, dx) for dy in range(3) for dx in range(3)]
CENTRE = SHIFTS.index((1, 1))


def shifted(images):
    """All nine shifts by up to one pixel, one after the other, as bytes."""
    images = np.round(255 * images).astype("uint8")
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    size = images.shape[1]
    parts = [padded[:, y : y + size, x : x + size] for y, x in SHIFTS]
    return np.concatenate(parts)


def pipeline(images, targets, n, *, batch, shift, seed):
    """Endlessly shuffled batches; a share of the images is shifted at random."""
    images, targets = tf.constant(images), tf.constant(targets)

    def look_up(index):
        which = tf.random.uniform(tf.shape(index), 0, len(SHIFTS), tf.int64, seed + 1)
        moved = tf.random.uniform(tf.shape(index), seed=seed + 2) < shift
        row = tf.where(moved, which, CENTRE) * n + index
        x = tf.cast(tf.gather(images, row), tf.float32) / 255.0
        return x, tf.gather(targets, row)

    batches = tf.data.Dataset.range(n).shuffle(n, seed=seed)
    batches = batches.batch(batch, drop_remainder=True).map(look_up).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1
    return batches.with_options(options)


def distillation(weight, temperature):
    """(1 - weight) * cross-entropy + weight * T^2 * cross-entropy with the teacher."""

    def loss(y_true, logits):
        label, teacher = y_true[:, :10], y_true[:, 10:]
        own = -ops.sum(label * ops.log_softmax(logits), -1)
        soft = ops.softmax(teacher / temperature)
        far = -ops.sum(soft * ops.log_softmax(logits / temperature), -1)
        return (1 - weight) * own + weight * temperature**2 * far

    return loss


def rate(start, steps, end):
    """Falls to half while weights are removed, then along a cosine to zero."""
    first = round(end * steps)
    return Join(
        [
            keras.optimizers.schedules.PolynomialDecay(start, first, start / 2),
            keras.optimizers.schedules.CosineDecay(start * 0.75, steps - first),
        ],
        boundaries=[first],
    )


def dense(name, s, images, labels, *, seed):
    """The dense network, trained."""
    model = getattr(models, name)()
    batches = pipeline(
        images, labels, len(labels) // 9, batch=128, shift=s["shift"], seed=seed
    )
    steps = s["teacher"] * len(batches)
    model.compile(
        dlopt.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(2e-3, steps), weight_decay=0.02
        ),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        steps_per_execution=33,
    )
    model.fit(batches, epochs=s["teacher"], shuffle=False, verbose=0)
    return model


def shares(name, sparsity):
    """How the zeros are shared out between the layers."""
    if name == "lenet_300_100":
        return Global()
    kept = KEPT[min(KEPT, key=lambda share: abs(share - sparsity))]
    return BySensitivity({k: 1 - n / SIZES[k] for k, n in kept.items()})


def sparse(name, model, s, images, targets, *, seed, watch=None):
    """The network pruned while it is trained on labels and logits."""
    batches = pipeline(
        images,
        targets,
        len(targets) // 9,
        batch=s["batch"],
        shift=s["shift"],
        seed=seed + 100,
    )
    steps = s["epochs"] * len(batches)
    schedule = PolynomialSparsity(
        s["sparsity"], end=round(s["end"] * steps), initial=0.5, frequency=99
    )
    rule = dlopt.Prune(schedule, distribution=shares(name, s["sparsity"]))
    small = dlopt.transform(model, dlopt.Recipe([(dlopt.named("kernel"), rule)]))
    small.compile(
        dlopt.optimizers.Adam(rate(s["rate"], steps, s["end"])),
        distillation(s["distill"], s["temperature"]),
        steps_per_execution=33,
    )
    small.fit(
        batches, epochs=s["epochs"], shuffle=False, verbose=0, callbacks=watch or []
    )
    return dlopt.finalize(small)


class Progress(keras.callbacks.Callback):
    """Prints the error now and then; used with `--validate` only."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def on_epoch_end(self, epoch, logs=None):
        if epoch % 5 == 4:
            labels = self.model.predict(self.x, batch_size=1000, verbose=0).argmax(1)
            print(
                f"  epoch {epoch + 1}: {100 * np.mean(labels != self.y):.2f} %",
                flush=True,
            )


def one_seed(name, s, train, test, *, seed, progress):
    """Trains and prunes with one seed; returns its row."""
    start = time.perf_counter()
    keras.utils.set_random_seed(seed)
    images, labels = train
    images = shifted(images)
    hot = np.tile(np.eye(10, dtype="float32")[labels], (9, 1))
    model = dense(name, s, images, hot, seed=seed)
    logits = np.concatenate(
        [
            model.predict(part.astype("float32") / 255, batch_size=1000, verbose=0)
            for part in np.array_split(images, 9)
        ]
    )
    before = model.predict(test[0], batch_size=1000, verbose=0)
    old = report.quality(before, test[1])
    if progress:
        print(
            f"  dense {100 * old.error:.2f} % after {time.perf_counter() - start:.0f}",
            flush=True,
        )
    watch = [Progress(*test)] if progress else None
    both = np.concatenate([hot, logits], axis=1)
    plain = sparse(name, model, s, images, both, seed=seed, watch=watch)
    after = plain.predict(test[0], batch_size=1000, verbose=0)
    new, changes = (
        report.quality(after, test[1]),
        report.changes(before, after, test[1]),
    )
    kernels = {v.path: v.numpy() for v in plain.weights if v.name == "kernel"}
    kept = {path: int((k != 0).sum()) for path, k in kernels.items()}
    return {
        "seed": seed,
        "error_dense": 100 * old.error,
        "error": 100 * new.error,
        "sparsity": 1 - sum(kept.values()) / sum(k.size for k in kernels.values()),
        "kept": kept,
        "churn": 100 * changes.churn,
        "worst_class_change": 100 * changes.worst_class_change,
        "calibration_error": [old.calibration_error, new.calibration_error],
        "negative_log_likelihood": [
            old.negative_log_likelihood,
            new.negative_log_likelihood,
        ],
        "seconds": round(time.perf_counter() - start),
    }


def write(path, result):
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, path)


def summary(rows):
    errors = [row["error"] for row in rows]
    return {
        "seeds": len(rows),
        "error_mean": statistics.mean(errors),
        "error_deviation": statistics.stdev(errors) if len(rows) > 1 else None,
        "error_worst": max(errors),
        "error_dense_mean": statistics.mean(row["error_dense"] for row in rows),
        "sparsity": min(row["sparsity"] for row in rows),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=list(SETTINGS), required=True)
    parser.add_argument("--data", default="mnist", help="name or folder of idx files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--validate", action="store_true", help="writes nothing")
    parser.add_argument("--smoke", action="store_true", help="a few steps on digits")
    for key, value in SETTINGS["lenet5"].items():
        parser.add_argument(f"--{key}", type=type(value))
    args = parser.parse_args()
    given = {k: getattr(args, k) for k in SETTINGS["lenet5"]}
    s = SETTINGS[args.network] | {k: v for k, v in given.items() if v is not None}

    loaded = data.load("digits" if args.smoke else args.data)
    x, y = np.asarray(loaded.x_train, "float32"), loaded.y_train
    test = loaded.x_val, loaded.y_val
    if args.smoke:
        grow = keras.layers.Resizing(28, 28)
        x, test = np.asarray(grow(x)), (np.asarray(grow(test[0])), test[1])
        s |= {"teacher": 1, "epochs": 2, "batch": 32}
        args.seeds = 1
    elif not args.validate:
        x = np.concatenate([x, loaded.x_val])
        y = np.concatenate([y, loaded.y_val])
        test = loaded.x_test, loaded.y_test

    path = RESULTS / f"prune_{args.network}_{100 * s['sparsity']:.4g}.json"
    rows = []
    if not args.validate and not args.smoke and path.exists():
        stored = json.loads(path.read_text())
        rows = stored["rows"] if stored["settings"] == s else []
    for seed in range(args.seeds):
        if any(row["seed"] == seed for row in rows):
            continue
        progress = args.validate
        row = one_seed(args.network, s, (x, y), test, seed=seed, progress=progress)
        rows.append(row)
        print(json.dumps(row), flush=True)
        if not args.validate and not args.smoke:
            result = {
                "network": args.network,
                "settings": s,
                "bar": BARS[args.network],
                "aim": AIMS[args.network],
                "machine": platform.machine(),
                "keras": keras.__version__,
                "tensorflow": tf.__version__,
                "summary": summary(rows),
                "rows": rows,
            }
            write(path, result)
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
