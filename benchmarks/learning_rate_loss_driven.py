"""LossDrivenLearningRate, one default setting, against the best tuned one-cycle.

For each network and data set:
1. tune: Adam with OneCycle, its peak from a grid, judged on validation data;
2. final: the best peak and LossDrivenLearningRate, each with the same seeds, trained on
   everything and judged once on the test set; the callback from several first rates.

    python benchmarks/learning_rate_loss_driven.py --seeds 5

writes benchmarks/results/learning_rate_loss_driven.json. With --again only the callback
is trained; the one-cycle figures in that file, of the same protocol, are kept.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import time

import keras
import numpy as np
import tensorflow as tf

from keras_dlopt import callbacks, data, models, schedules

BATCH = 128
PEAKS = (1e-3, 3e-3, 1e-2, 3e-2)
STARTS = (1e-5, 1e-1)
# No constant of the callback was ever chosen on digits; on the other two some were.
VALIDATION = {"digits": 180, "mnist": 5000, "fashion_mnist": 10000}


def small_cnn(input_shape):
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Conv2D(8, 3, strides=2, use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.Conv2D(16, 3, strides=2, use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


NETWORKS = {
    "lenet_300_100": lambda shape: models.lenet_300_100(input_shape=shape),
    "small_cnn": small_cnn,
    "lenet5": lambda shape: models.lenet5(input_shape=shape),
}


def stream(x, y, seed):
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    dataset = dataset.shuffle(len(x), seed=seed, reshuffle_each_iteration=True)
    return dataset.batch(BATCH).with_options(options)


def train(network, split, held, *, epochs, seed, rate=None, peak=None, **settings):
    """Accuracy on `held` in percent, and the learning rates by epoch."""
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    model = NETWORKS[network](split[0].shape[1:])
    steps = epochs * -(-len(split[0]) // BATCH)
    if peak is not None:
        rate, extra = schedules.OneCycle(peak, steps=steps), []
    else:
        extra = [callbacks.LossDrivenLearningRate(**settings)]
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=16,
    )
    history = model.fit(
        stream(*split, seed), epochs=epochs, verbose=0, callbacks=extra
    ).history
    accuracy = model.evaluate(*held, batch_size=1000, verbose=0)[1]
    return 100 * float(accuracy), history.get("learning_rate", [])


def compare(network, name, *, epochs, seeds, small, known=None):
    sets = data.load(name, validation=VALIDATION[name])
    parts = {
        "train": (sets.x_train, sets.y_train),
        "validation": (sets.x_val, sets.y_val),
        "test": (sets.x_test, sets.y_test),
    }
    if small:
        parts = {k: (x[:2000], y[:2000]) for k, (x, y) in parts.items()}
    if known is None:
        judge = functools.partial(
            train, network, parts["train"], parts["validation"], epochs=epochs, seed=100
        )
        tuned = {f"{peak:g}": judge(peak=peak)[0] for peak in PEAKS}
        best = float(max(tuned, key=tuned.get))
    else:
        tuned, best = known["tuned_on_validation"], known["best_peak"]
    both = tuple(
        np.concatenate(pair)
        for pair in zip(parts["train"], parts["validation"], strict=True)
    )
    final = functools.partial(train, network, both, parts["test"], epochs=epochs)
    rows, by_start, rates = {"one_cycle": [], "loss_driven": []}, {}, []
    for seed in range(seeds):
        rows["one_cycle"].append(
            final(seed=seed, peak=best)[0]
            if known is None
            else known["test_accuracy"]["one_cycle"][seed]
        )
        # Every start at or above the callback's own first rate is the same run; the
        # first seed shows it, the others use the highest.
        for start in STARTS if seed == 0 and known is None else STARTS[-1:]:
            accuracy, rates = final(seed=seed, rate=start)
            if seed == 0:
                by_start[f"{start:g}"] = accuracy
        rows["loss_driven"].append(accuracy)
    means = {key: float(np.mean(values)) for key, values in rows.items()}
    worst = (
        min([means["loss_driven"], *by_start.values()])
        if len(set(by_start.values())) > 1
        else means["loss_driven"]
    )
    return {
        "network": network,
        "data": name,
        "tuned_on_validation": tuned,
        "best_peak": best,
        "test_accuracy": rows,
        "mean": means,
        "spread": {key: float(np.std(values)) for key, values in rows.items()},
        "by_start_first_seed": by_start,
        "gap_of_worst_start": means["one_cycle"] - worst,
        "rates_by_epoch": rates,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--data", nargs="*", default=list(VALIDATION))
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--output", default=None)
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    began = time.time()
    results, known = [], {}
    if args.again:
        file = json.loads(target(args).read_text())
        assert (file["epochs"], file["seeds"]) == (args.epochs, args.seeds)
        known = {(r["network"], r["data"]): r for r in file["results"]}
    for network in args.networks:
        for name in args.data:
            if (network, name) == ("lenet5", "digits"):
                continue  # its second convolution finds 2x2 pixels
            result = compare(
                network,
                name,
                epochs=args.epochs,
                seeds=args.seeds,
                small=args.smoke,
                known=known.pop((network, name), None),
            )
            results.append(result)
            print(
                name,
                network,
                result["mean"],
                round(result["gap_of_worst_start"], 3),
                flush=True,
            )
            write([*known.values(), *results], args, began)


def target(args):
    here = pathlib.Path(__file__).parent / "results"
    return pathlib.Path(args.output or here / "learning_rate_loss_driven.json")


def write(results, args, began):
    file = target(args)
    file.parent.mkdir(exist_ok=True)
    text = {
        "command": "python benchmarks/learning_rate_loss_driven.py",
        "machine": {"processor": platform.machine(), "cpus": os.cpu_count()},
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
        "batch": BATCH,
        "epochs": args.epochs,
        "seeds": args.seeds,
        "smoke": args.smoke,
        "seconds": round(time.time() - began),
        "results": results,
    }
    file.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
