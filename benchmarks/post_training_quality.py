"""Post-training quantization on Fashion-MNIST: test accuracy against the float model.

    python benchmarks/post_training_quality.py [--seeds 5] [--networks resnet20 ...]

For each seed and network a float parent is trained for a few epochs (on the first
--train training images, flipped), then quantized without training it again. --kept is a
folder of parents trained before, `<network>_<seed>.keras`, such as those of
`fashion_resnet20.py --models`.
Calibration, bias correction and AdaRound see --examples training images without labels.
Accuracies in percent on the full 10,000 test images; `drop` is float minus quantized,
in points.

- `int8`: weights and activations of 8 bits, ranges by MSE.
- `int8_corrected`: the same with bias correction.
- `w4_nearest`, `w4_corrected`: weights of 4 bits per channel, first and last layer too,
  ranges by MSE, activations of 8 bits; rounded to the nearest; with bias correction.
- `w4_adaround`: the same with learned rounding.

Each finished row is written at once; a run can be stopped and continued, and rows
already in the file for the same settings are skipped. Parents are kept in --cache.
`--smoke` runs on a few hundred images and writes nothing.
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
import stored
import tensorflow as tf

import keras_dlopt as dlopt
from keras_dlopt import post_training
from keras_dlopt.transforms import FakeQuant

RESULTS = pathlib.Path(__file__).parent / "results" / "post_training_quality.json"
SETTINGS = ("train", "epochs", "batch_size", "peak", "steps", "examples")
BARS = {"int8": 0.1, "w4_adaround": 0.3}
NETWORKS = {
    "resnet20": lambda: dlopt.models.resnet20(input_shape=(28, 28, 1)),
    "mobilenet_small": lambda: dlopt.models.mobilenet_small(
        input_shape=(28, 28, 1), width=8
    ),
}
FOUR = FakeQuant(bits=4, observer="mse")


def flip(images):
    """Flips each image with probability 1/2."""
    chosen = tf.random.uniform([tf.shape(images)[0], 1, 1, 1]) < 0.5
    return tf.where(chosen, tf.reverse(images, [2]), images)


def parent(name, seed, data, args):
    if origin(name, seed, args) == "kept":
        path = args.kept / f"{name}_{seed}.keras"
        return keras.saving.load_model(path, compile=False)
    stem = f"{name}_{args.train}_{args.epochs}_{args.batch_size}_{seed}"
    path = args.cache / f"{stem}.keras"
    if path.exists():
        return keras.saving.load_model(path, compile=False)
    keras.utils.set_random_seed(seed)
    model = NETWORKS[name]()
    batches = dlopt.data.batches(
        *(part[: args.train] for part in data.train),
        batch_size=args.batch_size,
        shuffle=True,
        augment=flip,
        seed=seed,
    )
    steps = args.epochs * len(batches)
    model.compile(
        dlopt.optimizers.SGD(
            dlopt.schedules.OneCycle(args.peak, steps=steps),
            momentum=0.9,
            nesterov=True,
            weight_decay=1e-3,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(batches, epochs=args.epochs, shuffle=False, verbose=2)
    model.save(path)
    return model


def accuracy(model, data):
    guess = model.predict(data[0], batch_size=500, verbose=0).argmax(1)
    return round(100 * float(np.mean(guess == data[1])), 2)


def nearest(model, x, args):
    return post_training.quantize(model, x, weights=FOUR, input_range=(0, 1))


def corrected(small, x):
    post_training.correct_bias(small, x)
    return small


METHODS = {
    "int8": lambda m, x, args: post_training.quantize(m, x, input_range=(0, 1)),
    "w4_nearest": nearest,
    "w4_adaround": lambda m, x, args: post_training.adaround(
        nearest(m, x, args), x, steps=args.steps
    ),
    "int8_corrected": lambda m, x, args: corrected(
        post_training.quantize(m, x, input_range=(0, 1)), x
    ),
    "w4_corrected": lambda m, x, args: corrected(nearest(m, x, args), x),
}


def origin(name, seed, args):
    kept = args.kept and (args.kept / f"{name}_{seed}.keras").exists()
    return "kept" if kept else "trained here"


def run(name, seed, data, args, known):
    """Yields a row for each method that is not known yet."""
    todo = [m for m in METHODS if (name, seed, m) not in known]
    if not todo:
        return
    model = parent(name, seed, data, args)
    x = data.train[0][np.random.default_rng(seed).permutation(len(data.train[0]))]
    x = x[: args.examples]
    plain = accuracy(model, data.test)
    for method in todo:
        start = time.perf_counter()
        small = METHODS[method](model, x, args)
        seconds = round(time.perf_counter() - start)
        drop = round(plain - accuracy(small, data.test), 2)
        yield {
            "network": name,
            "seed": seed,
            "method": method,
            "parent": origin(name, seed, args),
            "float": plain,
            "drop": drop,
            "seconds": seconds,
        }


def report(rows, args):
    summary: dict[str, dict] = {}
    for row in rows:
        part = summary.setdefault(row["network"], {})
        part.setdefault(row["method"], []).append(row["drop"])
    for part in summary.values():
        for method, drops in part.items():
            part[method] = {
                "seeds": len(drops),
                "mean_drop": round(float(np.mean(drops)), 3),
                "worst_drop": max(drops),
            } | ({"bar": BARS[method]} if method in BARS else {})
    return {
        "machine": stored.machine(),
        "settings": settings(args),
        "points": summary,
        "rows": rows,
    }


def settings(args):
    return {name: getattr(args, name) for name in SETTINGS}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--train", type=int, default=50_000, help="images")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--peak", type=float, default=0.2, help="highest rate")
    parser.add_argument("--steps", type=int, default=400, help="of AdaRound, a layer")
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--cache", type=pathlib.Path, default=None)
    parser.add_argument("--kept", type=pathlib.Path, help="folder of parents")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.seeds, args.epochs, args.steps, args.examples = 1, 1, 5, 32
    args.cache = args.cache or pathlib.Path(tempfile.mkdtemp())
    args.cache.mkdir(parents=True, exist_ok=True)
    data = dlopt.data.load("fashion_mnist")
    if args.smoke:
        data = data.take(256, test=100)
    rows = [] if args.smoke else stored.earlier(RESULTS, settings(args), "rows")
    for seed in range(args.seeds):
        for name in args.networks:
            known = {(r["network"], r["seed"], r["method"]) for r in rows}
            for row in run(name, seed, data, args, known):
                print(json.dumps(row), flush=True)
                if args.smoke:
                    continue
                # Another process may have written its network's meanwhile.
                rows = [*stored.earlier(RESULTS, settings(args), "rows"), row]
                RESULTS.parent.mkdir(exist_ok=True)
                text = json.dumps(report(rows, args), indent=1)
                RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
