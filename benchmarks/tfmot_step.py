"""Cost of a training step: this package on Keras 3 against TFMOT on tf_keras.

    TF_USE_LEGACY_KERAS=1 python benchmarks/tfmot_step.py --out results.json

Both run in one process, interleaved: in each round every variant trains as many steps.
A variant's figure is the median over rounds of its time by that of its own float model
in the same round, once by the wall clock and once by the processor time of the process,
which other programs on the machine disturb less. The rows of other networks stay in
the file. `over_tfmot` is the time of our step by that of TFMOT's in the same round;
with `--fused` ours has this package's fused layers and optimizer instead of Keras'.
Needs tensorflow-model-optimization and tf-keras beside Keras 3.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import time

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import keras
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

import keras_dlopt as dlopt

CLASSES = 10
FREQUENCY = 100


def lenet5(kit):
    """LeNet-5 (Caffe) in Keras 3 or in tf_keras."""
    la = kit.layers
    inputs = kit.Input((28, 28, 1))
    x = la.MaxPooling2D()(la.Conv2D(20, 5, activation="relu")(inputs))
    x = la.MaxPooling2D()(la.Conv2D(50, 5, activation="relu")(x))
    x = la.Dense(500, activation="relu")(la.Flatten()(x))
    return kit.Model(inputs, la.Dense(CLASSES)(x))


def resnet20(kit):
    """ResNet-20 with projection shortcuts, 28 x 28."""
    la = kit.layers

    def norm(x, filters, size=3, strides=1):
        x = la.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
        return la.BatchNormalization()(x)

    inputs = kit.Input((28, 28, 1))
    x = la.ReLU()(norm(inputs, 16))
    for stage in range(3):
        for block in range(3):
            strides = 2 if stage and not block else 1
            y = la.ReLU()(norm(x, 16 * 2**stage, strides=strides))
            y = norm(y, 16 * 2**stage)
            short = norm(x, 16 * 2**stage, 1, strides) if strides > 1 else x
            x = la.ReLU()(la.Add()([y, short]))
    x = la.GlobalAveragePooling2D()(x)
    return kit.Model(inputs, la.Dense(CLASSES)(x))


NETWORKS = {"lenet5": lenet5, "resnet20": resnet20}


def ours(network, steps, fused):
    """Variant -> function that builds it."""
    kernels = dlopt.named("kernel")
    schedule = dlopt.schedules.PolynomialSparsity(0.9, end=steps, frequency=FREQUENCY)

    def plain():
        model = network(keras)
        if fused:
            dlopt.layers.use_fused(model)
        return model

    def with_recipe(recipe):
        def build():
            model = plain()
            return dlopt.transform(model, recipe(model))

        return build

    def cluster(count):
        return with_recipe(lambda _: dlopt.Recipe([(kernels, dlopt.Cluster(count))]))

    return {
        "float": plain,
        "prune": with_recipe(
            lambda _: dlopt.Recipe([(kernels, dlopt.Prune(schedule))])
        ),
        "qat": with_recipe(dlopt.int8_recipe),
        "cluster_16": cluster(16),
        "cluster_256": cluster(256),
    }


def theirs(network, steps):
    """The same variants with TFMOT."""
    sparsity, clustering = tfmot.sparsity.keras, tfmot.clustering.keras
    schedule = sparsity.PolynomialDecay(0.0, 0.9, 0, steps, frequency=FREQUENCY)

    def cluster(count):
        init = clustering.CentroidInitialization.LINEAR
        return lambda: clustering.cluster_weights(network(tf_keras), count, init)

    return {
        "float": lambda: network(tf_keras),
        "prune": lambda: sparsity.prune_low_magnitude(network(tf_keras), schedule),
        "qat": lambda: tfmot.quantization.keras.quantize_model(network(tf_keras)),
        "cluster_16": cluster(16),
        "cluster_256": cluster(256),
    }


def trainer(build, kit, adam, batches, callbacks):
    """Builds and compiles; returns the seconds it took and a timed epoch."""
    start = time.process_time()
    model = build()
    seconds = time.process_time() - start
    loss = kit.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(adam(1e-3), loss, jit_compile=False)
    model.fit(batches, verbose=0, callbacks=callbacks)

    def epoch():
        wall, cpu = time.perf_counter(), time.process_time()
        model.fit(batches, verbose=0, callbacks=callbacks)
        return time.perf_counter() - wall, time.process_time() - cpu

    return round(seconds, 2), epoch


def measure(name, *, batch, steps, rounds, variants, fused):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch * steps, 28, 28, 1)).astype("float32")
    y = rng.integers(0, CLASSES, batch * steps).astype("int32")
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)
    options = tf.data.Options()
    options.autotune.enabled = False
    batches = batches.with_options(options)
    total = steps * (rounds + 1)
    update = [tfmot.sparsity.keras.UpdatePruningStep()]
    runs, seconds = {}, {}
    adam = dlopt.optimizers.Adam if fused else keras.optimizers.Adam
    for side, builds, kit, optimizer in (
        ("ours", ours(NETWORKS[name], total, fused), keras, adam),
        ("tfmot", theirs(NETWORKS[name], total), tf_keras, tf_keras.optimizers.Adam),
    ):
        for key in variants:
            callbacks = update if (side, key) == ("tfmot", "prune") else []
            made = trainer(builds[key], kit, optimizer, batches, callbacks)
            seconds[f"{side}_{key}"], runs[side, key] = made
    times = {key: [] for key in runs}
    for _ in range(rounds):
        for key, epoch in runs.items():
            times[key].append(epoch())
    row = {
        "network": name,
        "batch": batch,
        "steps": steps,
        "rounds": rounds,
        "fused": fused,
        "build_cpu_seconds": seconds,
        "float_ms": {
            side: 1e3 * statistics.median(t[0] for t in times[side, "float"]) / steps
            for side in ("ours", "tfmot")
        },
        "load_average": os.getloadavg()[0],
    }
    for i, clock in enumerate(("wall", "cpu")):
        row[clock] = {
            f"{side}_{key}": statistics.median(
                a[i] / b[i]
                for a, b in zip(times[side, key], times[side, "float"], strict=True)
            )
            for side, key in runs
            if key != "float"
        }
    row["over_tfmot"] = {
        clock: {key: ratio_of_sides(times, key, i) for key in variants}
        for i, clock in enumerate(("wall", "cpu"))
    }
    return row


def ratio_of_sides(times, key, clock):
    """Median over rounds of our time by TFMOT's."""
    pairs = zip(times["ours", key], times["tfmot", key], strict=True)
    return statistics.median(a[clock] / b[clock] for a, b in pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = ("float", "prune", "qat", "cluster_16", "cluster_256")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--variants", nargs="*", default=names, choices=names)
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40, help="per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    variants = ["float", *(v for v in args.variants if v != "float")]
    kept = bool(args.out and args.out.exists())
    rows = json.loads(args.out.read_text())["rows"] if kept else []
    for name in args.networks:
        row = measure(
            name,
            batch=args.batch,
            steps=args.steps,
            rounds=args.rounds,
            variants=variants,
            fused=args.fused,
        )
        rows = [r for r in rows if (r["network"], r["fused"]) != (name, args.fused)]
        rows.append(row)
        print(json.dumps(row), flush=True)
        if args.out:
            result = {
                "machine": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
                "tf_keras": tf_keras.__version__,
                "tfmot": tfmot.__version__,
                "rows": rows,
            }
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
