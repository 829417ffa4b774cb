"""Trains ResNet-20 on Fashion-MNIST: test accuracy, epochs and time, by seed.

    python benchmarks/fashion_resnet20.py [--seeds 5] [--epochs 12] [--models DIR]

Trains on the first 50,000 training images, with horizontal flips and shifts of up to
two pixels; validates on the last 10,000 after each epoch; uses the test set once per
seed, at the end. SGD with momentum under a one-cycle rate, decoupled weight decay, the
fused layers and optimizer of this package. Each finished seed is written at once, so a
run can be stopped and continued: seeds already in the file for the same settings are
skipped. `--models` keeps the trained models, as parents for other benchmarks. Needs
Fashion-MNIST in KERAS_DLOPT_DATA, or a download. `--smoke` runs one
epoch of a few hundred images and writes nothing.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import stored
import tensorflow as tf

import keras_dlopt as dlopt

RESULTS = pathlib.Path(__file__).parent / "results" / "fashion_resnet20.json"
SETTINGS = ("epochs", "batch_size", "peak", "weight_decay")
TARGET = 0.925


def augment(images):
    """Flips each image with probability 1/2; shifts the batch by -2 to 2 pixels."""
    size = tf.shape(images)[0]
    flip = tf.random.uniform([size, 1, 1, 1]) < 0.5
    images = tf.where(flip, tf.reverse(images, [2]), images)
    padded = tf.pad(images, [[0, 0], [2, 2], [2, 2], [0, 0]])
    return tf.image.random_crop(padded, [size, *images.shape[1:]])


def compiled(seed, data, epochs, batch_size=128, peak=0.2, weight_decay=1e-3):
    """A new network with its optimizer, and its batches."""
    keras.utils.set_random_seed(seed)
    steps = epochs * -(-len(data.x_train) // batch_size)
    model = dlopt.models.resnet20(input_shape=data.input_shape, classes=data.classes)
    dlopt.layers.use_fused(model)
    model.compile(
        optimizer=dlopt.optimizers.SGD(
            dlopt.schedules.OneCycle(peak, steps=steps),
            momentum=0.9,
            nesterov=True,
            weight_decay=weight_decay,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model, batches(seed, data, batch_size)


def batches(seed, data, batch_size=128):
    return dlopt.data.batches(
        *data.train, batch_size=batch_size, shuffle=True, augment=augment, seed=seed
    )


def run(seed, data, args):
    model, train = compiled(seed, data, **settings(args))
    start, cpu = time.perf_counter(), time.process_time()
    history = model.fit(
        train,
        validation_data=dlopt.data.batches(*data.val, batch_size=500),
        epochs=args.epochs,
        shuffle=False,
        verbose=2,
    ).history
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    if args.models:
        args.models.mkdir(parents=True, exist_ok=True)
        model.save(args.models / f"resnet20_{seed}.keras")
    test = model.evaluate(*data.test, batch_size=500, verbose=0)[1]
    return {
        "seed": seed,
        "test_accuracy": round(float(test), 4),
        "val_accuracy": [round(float(v), 4) for v in history["val_accuracy"]],
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
    }


def report(runs, args):
    accuracy = np.array([r["test_accuracy"] for r in runs])
    return {
        "machine": stored.machine(),
        "settings": settings(args),
        "test_accuracy": {
            "seeds": len(runs),
            "mean": round(float(accuracy.mean()), 4),
            "spread": round(float(accuracy.std()), 4),
            "worst": round(float(accuracy.min()), 4),
            "target": TARGET,
        },
        "runs": runs,
    }


def settings(args):
    return {name: getattr(args, name) for name in SETTINGS}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--peak", type=float, default=0.2, help="highest rate")
    parser.add_argument("--weight-decay", type=float, default=1e-3)
    parser.add_argument("--models", type=pathlib.Path, help="folder to keep them in")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.seeds, args.epochs = 1, 1
    data = dlopt.data.load("fashion_mnist")
    if args.smoke:
        data = data.take(256, test=100)
    runs = [] if args.smoke else stored.earlier(RESULTS, settings(args), "runs")
    for seed in range(args.seeds):
        if seed in {r["seed"] for r in runs}:
            continue
        runs.append(run(seed, data, args))
        text = json.dumps(report(runs, args), indent=1)
        print(text)
        if not args.smoke:
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
