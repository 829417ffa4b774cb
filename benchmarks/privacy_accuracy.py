"""Accuracy under differential privacy: a linear model on scattering features.

    KERAS_DLOPT_DATA=... python benchmarks/privacy_accuracy.py mnist [--seeds 3]
        [--features FOLDER]

Tramer and Boneh 2021 (arXiv:2011.11660): the features (wavelet scattering, 81 maps of
7x7, normalized in 27 groups) look at no other image, so that they cost no privacy; the
linear model on them is trained with DP-SGD. The learning rate and the clipping norm
were chosen among six on the last 10,000 images of Fashion-MNIST (what that costs is
not counted, as usual in the literature); the models here see all 60,000. Needs
kymatio; `--features` names a folder that keeps the features.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from keras_dlopt import data, privacy

RESULTS = pathlib.Path(__file__).parent / "results"
BATCH, EPOCHS, GROUPS = 4096, 30, 27
EPSILON, DELTA = 3.0, 1e-5
# Step of the mean gradient in units of the clipping norm, and that norm.
SETTINGS = {"mnist": (1.2, 1.0), "fashion_mnist": (1.2, 1.0)}


def scattered(images):
    """Features of images (count, 28, 28, 1), (count, 3969) in float16."""
    import scipy.special

    if not hasattr(scipy.special, "sph_harm"):  # kymatio 0.3.0 asks for it in 3-D
        scipy.special.sph_harm = None
    from kymatio.tensorflow import Scattering2D

    transform = tf.function(Scattering2D(J=2, shape=(28, 28), L=8))
    found = []
    for i in range(0, len(images), 500):
        maps = transform(tf.constant(images[i : i + 500, :, :, 0])).numpy()
        grouped = maps.reshape(len(maps), GROUPS, -1)
        grouped = grouped - grouped.mean(axis=2, keepdims=True)
        grouped /= np.sqrt(grouped.var(axis=2, keepdims=True) + 1e-5)
        found.append(grouped.reshape(len(maps), -1).astype("float16"))
    return np.concatenate(found)


def features(name, folder):
    """Training and test features with their labels."""
    path = None if folder is None else pathlib.Path(folder) / f"{name}_features.npz"
    if path is None or not path.exists():
        digits = data.load(name, validation=1)
        train = np.concatenate([digits.x_train, digits.x_val])
        arrays = {
            "x": scattered(train),
            "y": np.concatenate([digits.y_train, digits.y_val]),
            "x_test": scattered(digits.x_test),
            "y_test": digits.y_test,
        }
        if path is None:
            return arrays
        np.savez(path, **arrays)
    return dict(np.load(path))


def trained(name, arrays, seed):
    """One training; what it reached and spent."""
    keras.utils.set_random_seed(seed)
    step, clip = SETTINGS[name]
    steps = EPOCHS * -(-len(arrays["x"]) // BATCH)
    inputs = keras.Input(arrays["x"].shape[1:])
    head = keras.layers.Dense(10, kernel_initializer="zeros")
    model = privacy.private(
        keras.Model(inputs, head(inputs)), epsilon=EPSILON, delta=DELTA, clip=clip
    )
    rate = keras.optimizers.schedules.PolynomialDecay(step / clip, steps, 0.0)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    cpu = time.process_time()
    model.fit(arrays["x"], arrays["y"], BATCH, EPOCHS, verbose=0)
    found = model.evaluate(
        arrays["x_test"], arrays["y_test"], batch_size=1000, verbose=0, return_dict=True
    )
    (spent,) = model.ledger
    return {
        "accuracy": round(100 * found["accuracy"], 2),
        "epsilon": model.epsilon(),
        "epsilon_rdp": privacy.epsilon(spent, delta=DELTA, accountant="rdp"),
        "noise_multiplier": spent.noise_multiplier,
        "steps": spent.steps,
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--features", default=None)
    args = parser.parse_args()
    arrays = features(args.data, args.features)
    runs = []
    for seed in range(args.seeds):
        runs.append(trained(args.data, arrays, seed))
        accuracies = [run["accuracy"] for run in runs]
        result = {
            "data": args.data,
            "batch_size": BATCH,
            "epochs": EPOCHS,
            "delta": DELTA,
            "step_and_clip": SETTINGS[args.data],
            "mean_accuracy": round(float(np.mean(accuracies)), 2),
            "runs": runs,
        }
        path = RESULTS / f"privacy_{args.data}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(runs[-1]), flush=True)


if __name__ == "__main__":
    main()
