"""LeNet-5 on MNIST with 2-bit weights and activations, and with ternary weights.

    python benchmarks/quantize_lenet5.py [--seeds 5] [--methods two_bit ternary]

For each seed a float parent is trained, then each quantized network from it; test
errors in percent on the full 10,000 images, used once per network.

- Network: Caffe's LeNet-5 (431,080 parameters; no ReLU after the convolutions). Trains
  on the first 55,000 training images shifted by up to two pixels; the last 5,000 chose
  the settings.
- `two_bit`: the kernels of all four layers by LSQ with 2 bits; what each of the four
  layers takes has 2 bits too: the image on the fixed levels 0, 1/3, 2/3, 1, the pooled
  maps by LSQ+, the hidden units by LSQ. Biases and logits stay in float.
- `ternary`: the kernels of all four layers are -a, 0 or a with one learned a a layer
  (LSQ, narrow, 2 bits), or, `ternary_trained`, -n, 0 or p (TTQ); activations in float.
- Both learn from labels and from the parent's logits (temperature 4), by Adam with a
  cosine rate.

Each finished network is written at once; a run can be stopped and continued, and
networks already in the file for the same settings are skipped. Parents are kept in
--cache. `--smoke` runs on a few hundred images and writes nothing.
"""

import argparse
import json
import math
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import stored
import tensorflow as tf
from keras import ops

import keras_dlopt as dlopt
from keras_dlopt import transforms as t

RESULTS = pathlib.Path(__file__).parent / "results" / "quantize_lenet5.json"
SETTINGS = ("parent_epochs", "epochs", "batch_size", "rate", "temperature")
BARS = {"two_bit": 0.75, "ternary": 0.65, "ternary_trained": 0.65}
KERNELS = dlopt.named("kernel")


def two_bit():
    inputs = dlopt.FakeQuantActivation(bits=2, range=(0.0, 1.0))
    return dlopt.Recipe(
        [
            (dlopt.at("conv1/input"), inputs),
            (dlopt.at("pool1/output", "pool2/output"), t.LSQPlusActivation(bits=2)),
            (dlopt.at("ip1/output"), t.LSQActivation(bits=2)),
            (KERNELS, t.LSQ(bits=2)),
        ]
    )


METHODS = {
    "two_bit": two_bit,
    "ternary": lambda: dlopt.Recipe([(KERNELS, t.LSQ(bits=2, narrow_range=True))]),
    "ternary_trained": lambda: dlopt.Recipe([(KERNELS, t.TrainedTernary())]),
}


def shift(images):
    """Shifts each image by -2 to 2 pixels."""
    size = tf.shape(images)[0]
    padded = tf.pad(images, [[0, 0], [2, 2], [2, 2], [0, 0]])
    moves = tf.random.uniform([2, size], 0, 5, tf.int32)
    rows = tf.gather(padded, moves[0][:, None] + tf.range(28), axis=1, batch_dims=1)
    rows = tf.transpose(rows, [0, 2, 1, 3])
    rows = tf.gather(rows, moves[1][:, None] + tf.range(28), axis=1, batch_dims=1)
    return tf.transpose(rows, [0, 2, 1, 3])


def stream(data, args, seed, teacher=None):
    """Shuffled, shifted batches; with a teacher its logits stand after the label."""
    x, y = data

    def prepare(x, y):
        x = shift(x)
        y = tf.cast(y, "float32")[:, None]
        if teacher is not None:
            y = tf.concat([y, teacher(x, training=False)], axis=1)
        return x, y

    batches = tf.data.Dataset.from_tensor_slices((x, y))
    batches = batches.shuffle(len(x), seed=seed).batch(args.batch_size)
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.map(prepare).prefetch(2).with_options(options)


def labels_and_logits(temperature):
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss(target, logits):
        total = hard(target[:, 0], logits)
        if target.shape[1] == 1:
            return total
        soft = ops.softmax(target[:, 1:] / temperature)
        logs = ops.log_softmax(logits / temperature)
        return total - temperature**2 * ops.mean(ops.sum(soft * logs, axis=1))

    return loss


def error(model, data):
    guess = model.predict(data[0], batch_size=1000, verbose=0).argmax(1)
    return round(100 * float(np.mean(guess != data[1])), 2)


def train(model, batches, steps, args, rate):
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(schedule), labels_and_logits(args.temperature))
    model.fit(batches, epochs=round(steps / len(batches)), verbose=2)


def parent(seed, data, args):
    path = args.cache / f"lenet5_{args.parent_epochs}_{args.batch_size}_{seed}.keras"
    if path.exists():
        return keras.saving.load_model(path, compile=False)
    keras.utils.set_random_seed(seed)
    model = dlopt.models.lenet5()
    batches = stream(data.train, args, seed)
    train(model, batches, len(batches) * args.parent_epochs, args, args.rate)
    model.save(path)
    return model


def run(method, seed, data, args):
    start = time.perf_counter()
    teacher = parent(seed, data, args)
    teacher.trainable = False
    keras.utils.set_random_seed(1000 + seed)
    student = dlopt.models.lenet5()
    student.set_weights(teacher.get_weights())
    student.trainable = True
    small = dlopt.transform(student, METHODS[method](), copy=False)
    batches = stream(data.train, args, 1000 + seed, teacher)
    train(small, batches, len(batches) * args.epochs, args, args.rate)
    plain = dlopt.finalize(small)
    with tempfile.TemporaryDirectory() as folder:
        ledger = dlopt.save_compressed(plain, f"{folder}/model.dlopt")
    return {
        "method": method,
        "seed": seed,
        "parent_error": error(teacher, data.test),
        "val_error": error(small, data.val),
        "test_error": error(small, data.test),
        "bits_a_kernel_weight": levels(plain),
        "file_bytes": ledger.file_bytes,
        "seconds": round(time.perf_counter() - start),
    }


def levels(plain):
    """log2 of the most distinct values in any kernel."""
    counts = [np.unique(v.numpy()).size for v in plain.weights if v.name == "kernel"]
    return round(math.log2(max(counts)), 2)


def report(runs, args):
    summary = {}
    for method, bar in BARS.items():
        errors = [r["test_error"] for r in runs if r["method"] == method]
        if errors:
            summary[method] = {
                "seeds": len(errors),
                "mean": round(float(np.mean(errors)), 3),
                "spread": round(float(np.std(errors)), 3),
                "worst": max(errors),
                "bar": bar,
            }
    return {
        "machine": stored.machine(),
        "settings": settings(args),
        "test_error_percent": summary,
        "runs": runs,
    }


def settings(args):
    return {name: getattr(args, name) for name in SETTINGS}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=["two_bit", "ternary"])
    parser.add_argument("--parent-epochs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--cache", type=pathlib.Path, default=None)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.seeds, args.parent_epochs, args.epochs = 1, 1, 1
    args.cache = args.cache or pathlib.Path(tempfile.mkdtemp())
    args.cache.mkdir(parents=True, exist_ok=True)
    data = dlopt.data.load("mnist")
    if args.smoke:
        data = data.take(512, test=100)
    runs = [] if args.smoke else stored.earlier(RESULTS, settings(args), "runs")
    for seed in range(args.seeds):
        for method in args.methods:
            if (method, seed) in {(r["method"], r["seed"]) for r in runs}:
                continue
            runs.append(run(method, seed, data, args))
            print(json.dumps(runs[-1]), flush=True)
            if not args.smoke:
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(json.dumps(report(runs, args), indent=1) + "\n")


if __name__ == "__main__":
    main()
