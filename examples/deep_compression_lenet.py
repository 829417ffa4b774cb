"""Deep Compression's LeNets: prune, cluster and entropy-code under one recipe.

    python examples/deep_compression_lenet.py --data mnist

trains LeNet-300-100 and LeNet-5 on MNIST, compresses each with one recipe in one `fit`,
writes the coded file, reads it back and reports error, bytes and ratio, as the mean
over seeds. `--validate` holds out the last 5,000 training images and reports on those:
that is how the settings below were chosen. Without it all 60,000 train, and the test
images are used once per network and seed.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time

import keras
import numpy as np

import keras_dlopt as dlopt
from keras_dlopt import data, models, report
from keras_dlopt.schedules import PolynomialSparsity

BATCH = 128
DECAY = 0.05  # of AdamW; small weights fade, so that pruning finds the right ones
# Per network: builder, ratio of Deep Compression; epochs of float training, of pruning,
# of training with the final mask, and of training with shared values; learning rates
# at the start of both trainings; sparsity and number of shared values by layer.
SETTINGS = {
    "lenet_300_100": {
        "build": models.lenet_300_100,
        "record": 40,
        "epochs": (20, 12, 30, 8),
        "rates": (2e-3, 4e-3),
        "layers": {"ip1": (0.93, 16), "ip2": (0.88, 16), "ip3": (0.5, 16)},
    },
    "lenet5": {
        "build": models.lenet5,
        "record": 39,
        "epochs": (10, 6, 8, 4),
        "rates": (2e-3, 2e-3),
        "layers": {
            "conv1": (0.3, 16),
            "conv2": (0.88, 16),
            "ip1": (0.975, 16),
            "ip2": (0.85, 16),
        },
    },
}


def recipe(layers, prune_end, cluster_begin):
    """One recipe: a polynomial schedule down to each layer's share, then clustering."""
    return dlopt.Recipe(
        (
            dlopt.at(f"{layer}/kernel"),
            dlopt.Prune(PolynomialSparsity(sparsity, end=prune_end, frequency=100))
            >> dlopt.Cluster(clusters, begin=cluster_begin),
        )
        for layer, (sparsity, clusters) in layers.items()
    )


def compiled(model, *, steps, rate):
    model.compile(
        dlopt.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(rate, steps), weight_decay=DECAY
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=16,
    )
    return model


def run(name, train, test, *, seed, scale, folder):
    """Trains and compresses one network; returns its row."""
    setting, start = SETTINGS[name], time.perf_counter()
    keras.utils.set_random_seed(seed)
    base, prune, sparse, shared = (max(1, round(e * scale)) for e in setting["epochs"])
    batches = data.batches(*train, batch_size=BATCH, shuffle=True, seed=seed)
    per_epoch = len(batches)

    first, second = setting["rates"]
    model = compiled(setting["build"](), steps=base * per_epoch, rate=first)
    model.fit(batches, epochs=base, verbose=0)
    before = model.predict(test[0], batch_size=1000, verbose=0)

    end = prune * per_epoch
    begin = end + sparse * per_epoch
    small = dlopt.transform(model, recipe(setting["layers"], end, begin))
    total = prune + sparse + shared
    compiled(small, steps=total * per_epoch, rate=second)
    small.fit(batches, epochs=total, verbose=0)

    path = folder / f"{name}-{seed}.dlopt"
    ledger = dlopt.save_compressed(dlopt.finalize(small), path)
    again = dlopt.load_compressed(path)
    after = again.predict(test[0], batch_size=1000, verbose=0)
    old, new = (report.quality(outputs, test[1]) for outputs in (before, after))
    changes = report.changes(before, after, test[1])
    kernels = [v.numpy() for v in again.weights if v.name == "kernel"]
    return {
        "network": name,
        "seed": seed,
        "error_float": 100 * old.error,
        "error_compressed": 100 * new.error,
        "bytes_plain": ledger.plain_bytes,
        "bytes": path.stat().st_size,
        "ratio": ledger.plain_bytes / path.stat().st_size,
        "sparsity": sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels),
        "churn": 100 * changes.churn,
        "worst_class_change": 100 * changes.worst_class_change,
        "calibration_error": [old.calibration_error, new.calibration_error],
        "negative_log_likelihood": [
            old.negative_log_likelihood,
            new.negative_log_likelihood,
        ],
        "seconds": time.perf_counter() - start,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="mnist", help="name or folder of idx files")
    parser.add_argument("--network", choices=[*SETTINGS, "both"], default="both")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of all epochs")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="a few steps on digits")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for the results")
    args = parser.parse_args()

    loaded = data.load("digits" if args.smoke else args.data)
    x, y = loaded.x_train, loaded.y_train
    if args.smoke:
        args.seeds, args.scale = 1, 0.05
        grow = keras.layers.Resizing(28, 28)
        x, x_test = np.asarray(grow(x[:256])), np.asarray(grow(loaded.x_test))
        train, test = (x, y[:256]), (x_test, loaded.y_test)
    elif args.validate:
        train, test = (x, y), (loaded.x_val, loaded.y_val)
    else:
        train = np.concatenate([x, loaded.x_val]), np.concatenate([y, loaded.y_val])
        test = loaded.x_test, loaded.y_test

    rows = []
    names = list(SETTINGS) if args.network == "both" else [args.network]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            for seed in range(args.seeds):
                row = run(
                    name,
                    train,
                    test,
                    seed=seed,
                    scale=args.scale,
                    folder=pathlib.Path(folder),
                )
                rows.append(row)
                print(json.dumps(row), flush=True)
    for name in names:
        mine = [r for r in rows if r["network"] == name]
        mean = {
            key: statistics.mean(r[key] for r in mine)
            for key in ("error_float", "error_compressed", "bytes", "ratio", "churn")
        }
        print(
            f"{name}: error {mean['error_float']:.2f} -> "
            f"{mean['error_compressed']:.2f} %, {mine[0]['bytes_plain']:,} -> "
            f"{mean['bytes']:,.0f} bytes, ratio {mean['ratio']:.1f} "
            f"(Deep Compression {SETTINGS[name]['record']}), "
            f"mean of {len(mine)} seeds"
        )
    if args.out:
        partial = args.out.with_suffix(".part")
        partial.write_text(json.dumps(rows, indent=1))
        os.replace(partial, args.out)


if __name__ == "__main__":
    main()
