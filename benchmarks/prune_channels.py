"""Half of a small residual network's multiply-accumulates, beside its honest control.

    KERAS_DLOPT_DATA=... python benchmarks/prune_channels.py [--seeds 3] [--smoke]

ResNet-8 (width 16) on Fashion-MNIST at 14x14: trained, pruned to half of its MACs by
several scores, and trained on. The control is the pruned architecture trained from
fresh weights for the same total of epochs; the whole network gets that total as well.
No setting was tuned; every number is the test accuracy after the last step. A finished
seed is written to `benchmarks/results/prune_channels.json` at once.
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

import keras_dlopt as dlopt
from keras_dlopt import data, models, surgery

RESULTS = pathlib.Path(__file__).parent / "results" / "prune_channels.json"
SCORES = {
    "norm": surgery.ChannelNorm(),
    "normalization scale": surgery.NormalizationScale(),
    "taylor": dlopt.prune.Taylor(),
    "random": dlopt.prune.Random(),
}


def halved(images):
    """Means of 2x2 pixels, float32 in [0, 1]."""
    count, height, width = images.shape[:3]
    parts = np.reshape(images, (count, height // 2, 2, width // 2, 2, 1))
    return parts.mean(axis=(2, 4)).astype("float32")


def compiled(model, steps):
    """The model with Adam on a cosine of so many steps."""
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


def trained(model, train, epochs):
    """The same model, trained."""
    batch = 64
    compiled(model, epochs * (len(train[0]) // batch))
    model.fit(*train, batch_size=batch, epochs=epochs, verbose=0)
    return model


def accuracy(model, test):
    """On the test images, in percent."""
    return round(100 * model.evaluate(*test, batch_size=500, verbose=0)[1], 2)


def one_seed(seed, train, test, epochs, more):
    """All numbers of one seed."""
    keras.utils.set_random_seed(seed)
    model = models.resnet(depth=8, width=16, input_shape=train[0].shape[1:])
    trained(model, train, epochs)
    row = {"seed": seed, "whole": accuracy(model, test)}
    small = None
    for name, score in SCORES.items():
        options = {"macs": 0.5, "score": score, "multiple": 4, "seed": seed}
        asks = bool(getattr(score, "statistics", ()))
        if not asks:
            raw, _ = surgery.prune_channels(model, **options)
            row[f"{name}, at once"] = accuracy(raw, test)
        small, report = surgery.prune_channels(model, data=train, **options)
        row[f"{name}, statistics measured anew"] = accuracy(small, test)
        row[f"{name}, trained on"] = accuracy(trained(small, train, more), test)
        row[f"{name}, parameters"] = report.parameters_after
        if name == "norm":
            keras.utils.set_random_seed(seed + 100)
            fresh = keras.models.clone_model(small)
            total = epochs + more
            row["norm, from the start"] = accuracy(trained(fresh, train, total), test)
            row["macs"] = [report.macs_before, report.macs_after]
    whole = keras.models.clone_model(model)
    row["whole, all epochs"] = accuracy(trained(whole, train, epochs + more), test)
    return row


def main():
    """Runs the seeds that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--more", type=int, default=3)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    given = parser.parse_args()
    if given.smoke:
        digits = data.load("digits")
        given.seeds, given.epochs, given.more = 1, 1, 1
        train = digits.x_train[:128], digits.y_train[:128]
        test = digits.x_test, digits.y_test
    else:
        found = data.load("fashion_mnist")
        train = halved(found.x_train[: given.images]), found.y_train[: given.images]
        test = halved(found.x_test), found.y_test
    rows = []
    for seed in range(given.seeds):
        start = time.perf_counter()
        row = one_seed(seed, train, test, given.epochs, given.more)
        rows.append(row | {"seconds": round(time.perf_counter() - start)})
        print(rows[-1], flush=True)
        result = {
            "images": len(train[0]),
            "epochs": given.epochs,
            "more": given.more,
            "machine": platform.processor() or platform.machine(),
            "keras": keras.__version__,
            "rows": rows,
        }
        if not given.smoke:
            given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
