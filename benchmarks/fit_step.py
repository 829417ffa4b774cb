"""Times one training step of `fit`: ours against plain Keras 3 and tf_keras.

All contenders train the same network from the same weights on the same batches, in one
process, interleaved: each round lets each of them run one epoch of a few steps, and
ratios are taken within the round. Reported are medians over rounds, of wall-clock time
and of the process' CPU time over all threads. On a machine with other work, only the
latter means something. The ladder from plain Keras to ours changes one thing per rung,
so each difference names its cause.

    python benchmarks/fit_step.py [--networks resnet20 resnet56 lenet5] [--batches 64]

Needs tf-keras beside keras (pip install 'keras-dlopt[bench]').
"""

import argparse
import json
import os
import pathlib
import platform
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from keras_dlopt import data, layers, optimizers

RESULTS = pathlib.Path(__file__).parent / "results" / "fit_step.json"
# Long epochs: what `fit` does once an epoch is no part of a step.
SHAPE, STEPS = (28, 28, 1), 24
# TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 make a run of one thread.
THREADS = int(os.environ.get("TF_NUM_INTRAOP_THREADS", 0))


def resnet(k, depth):
    """The network of `keras_dlopt.models.resnet`, for either Keras."""

    def conv(x, filters, strides=1):
        return k.layers.Conv2D(
            filters, 3, strides=strides, padding="same", use_bias=False
        )(x)

    def norm(x):
        return k.layers.BatchNormalization(momentum=0.9)(x)

    inputs = k.Input(SHAPE)
    x = k.layers.ReLU()(norm(conv(inputs, 16)))
    for stage in range(3):
        for block in range((depth - 2) // 6):
            filters, strides = 16 * 2**stage, 2 if stage and not block else 1
            y = k.layers.ReLU()(norm(conv(x, filters, strides)))
            y = norm(conv(y, filters))
            if strides > 1:
                x = k.layers.MaxPooling2D(1, strides=2)(x)
                x = k.layers.ZeroPadding2D(
                    ((0, 0), (0, filters // 2)), data_format="channels_first"
                )(x)
            x = k.layers.ReLU()(k.layers.Add()([y, x]))
    x = k.layers.GlobalAveragePooling2D()(x)
    return k.Model(inputs, k.layers.Dense(10)(x))


def lenet5(k):
    inputs = k.Input(SHAPE)
    x = inputs
    for filters in (20, 50):
        x = k.layers.MaxPooling2D(2)(k.layers.Conv2D(filters, 5)(x))
    x = k.layers.Dense(500, activation="relu")(k.layers.Flatten()(x))
    return k.Model(inputs, k.layers.Dense(10)(x))


def build(k, network):
    if network == "lenet5":
        return lenet5(k)
    return resnet(k, int(network.removeprefix("resnet")))


def compiled(k, network, weights, optimizer, *, metrics=True, spe=1, fused=False):
    model = build(k, network)
    model.set_weights(weights)
    if fused:
        layers.use_fused(model)
    model.compile(
        optimizer,
        k.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"] if metrics else None,
        steps_per_execution=spe,
        jit_compile=False,
    )
    return model


def contenders(network):
    """Name -> (model, how it is fed)."""
    keras.utils.set_random_seed(1)
    weights = build(keras, network).get_weights()
    plain = keras.optimizers.Adam
    ours = optimizers.Adam

    def k3(optimizer, **options):
        return compiled(keras, network, weights, optimizer(1e-3), **options)

    def k2(**options):
        return compiled(
            tf_keras, network, weights, tf_keras.optimizers.Adam(1e-3), **options
        )

    made = {
        "keras": (k3(plain), "dataset"),
        "keras, fused normalization": (k3(plain, fused=True), "dataset"),
        "ours": (k3(ours, fused=True), "dataset"),
        "ours, no metric": (k3(ours, fused=True, metrics=False), "dataset"),
        "ours, 8 steps per execution": (k3(ours, fused=True, spe=8), "dataset"),
        "keras, arrays": (k3(plain), "arrays"),
        "tf_keras": (k2(), "dataset"),
        "tf_keras, no metric": (k2(metrics=False), "dataset"),
        "tf_keras, arrays": (k2(), "arrays"),
    }
    if network == "lenet5":  # nothing to fuse but the optimizer
        del made["keras, fused normalization"]
    return made


def timed_epoch(model, feed, x, y, batch):
    """Wall-clock seconds, CPU seconds and the loss of one epoch."""
    dataset = data.batches(x, y, batch_size=batch)
    wall, cpu = time.perf_counter(), time.process_time()
    if feed == "dataset":
        history = model.fit(dataset, shuffle=False, verbose=0)
    else:
        history = model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu, history.history["loss"][0]


def measure(network, batch, rounds):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(batch * STEPS, *SHAPE)).astype("float32")
    y = rng.integers(0, 10, batch * STEPS).astype("int32")
    made = contenders(network)
    wall = {name: [] for name in made}
    cpu = {name: [] for name in made}
    losses = {name: [] for name in made}
    for turn in range(rounds + 1):
        for name, (model, feed) in made.items():
            seconds, busy, loss = timed_epoch(model, feed, x, y, batch)
            losses[name].append(loss)
            if turn:  # the first one traces
                wall[name].append(seconds / STEPS)
                cpu[name].append(busy / STEPS)
    result = {"network": network, "batch": batch}
    for kind, times in (("wall", wall), ("cpu", cpu)):
        seconds = {name: np.array(values) for name, values in times.items()}
        result[kind] = {"steps": ratios(seconds), "lost_ms": lost(seconds)}
    for name in ("ours", "keras, arrays"):
        result[f"loss, keras against {name}"] = differences(losses, name)
    return result


def ratios(seconds):
    base, peer = seconds["keras"], seconds["tf_keras"]
    return {
        name: {
            "median_ms": round(float(np.median(v)) * 1e3, 2),
            "keras_over_this": round(float(np.median(base / v)), 3),
            "this_over_tf_keras": round(float(np.median(v / peer)), 3),
        }
        for name, v in seconds.items()
    }


def differences(losses, name):
    """Relative difference of the mean loss, epoch by epoch.

    The second line in the results compares Keras with itself, fed differently: what
    remains there is the order in which threads add.
    """
    first, other = np.array(losses["keras"]), np.array(losses[name])
    return [float(f"{d:.2g}") for d in np.abs(first - other) / first]


def lost(seconds):
    """Where Keras' time over tf_keras goes, in milliseconds per step.

    Differences of times measured in the same round; the median over rounds.
    """

    def gap(slow, fast):
        return seconds[slow] - seconds[fast]

    after = "keras, fused normalization"
    rungs = {}
    if after in seconds:
        rungs["normalization"] = gap("keras", after)
    else:
        after = "keras"
    rungs |= {
        "optimizer (Keras' Adam to ours)": gap(after, "ours"),
        "metric, Keras": gap("ours", "ours, no metric"),
        "metric, tf_keras": gap("tf_keras", "tf_keras, no metric"),
        "Python per step (1 to 8 steps per execution)": gap(
            "ours", "ours, 8 steps per execution"
        ),
        "data adapter, Keras (arrays to our pipeline)": gap("keras, arrays", "keras"),
        "data adapter, tf_keras": gap("tf_keras, arrays", "tf_keras"),
        "keras over tf_keras, in all": gap("keras", "tf_keras"),
        "ours over tf_keras, in all": gap("ours", "tf_keras"),
    }
    return {name: round(float(np.median(v)) * 1e3, 2) for name, v in rungs.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--batches", nargs="+", type=int, default=[64])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    known = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else {}
    for network in args.networks:
        for batch in args.batches:
            run = measure(network, batch, args.rounds)
            run |= {"rounds": args.rounds, "load_before": os.getloadavg()[0]}
            run |= {"threads": THREADS or os.cpu_count(), "steps": STEPS}
            known[f"{network}, batch {batch}, {run['threads']} thread(s)"] = run
            print(json.dumps(run, indent=1))
            keras.utils.clear_session()
            RESULTS.parent.mkdir(exist_ok=True)
            text = {"machine": machine(), "runs": known}
            RESULTS.write_text(json.dumps(text, indent=1) + "\n")


def machine():
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "tf_keras": tf_keras.__version__,
    }


if __name__ == "__main__":
    main()
