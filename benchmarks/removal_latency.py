"""Time of one prediction before and after channels leave.

    python benchmarks/removal_latency.py [--calls 200] [--person FILE] [--out FILE]

Residual networks of one width, half of the channels inside their blocks gone: their
float and int8 LiteRT files before and after, in turns, one thread, batch 1. Weights are
random, since time does not depend on them; what removal costs in accuracy is another
benchmark's question. MobileNetV2 and ResNet-20 with half of their multiply-accumulates
gone stand against TensorFlow's function of the whole model. `--person` adds MLPerf
Tiny's network without its dead channels.
"""

import argparse
import json
import os
import pathlib
import platform
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_dlopt as dlopt
from keras_dlopt import models, post_training, surgery
from keras_dlopt.export.runtime import interpreter

RESULTS = pathlib.Path(__file__).parent / "results" / "removal_latency.json"
L = keras.layers


def residual(width, blocks=6, size=32):
    """Blocks of two convolutions around one stream of `width` channels."""
    inputs = keras.Input((size, size, 3))
    x = L.Conv2D(width, 3, padding="same", name="stem")(inputs)
    for i in range(blocks):
        y = x
        for part in ("inner", "outer"):
            y = L.ReLU()(L.BatchNormalization()(y))
            y = L.Conv2D(width, 3, padding="same", name=f"{part}{i}")(y)
        x = L.Add()([x, y])
    x = L.GlobalAveragePooling2D()(L.ReLU()(x))
    return keras.Model(inputs, L.Dense(10, name="top")(x))


def without_half_of_the_inner(model):
    """The model without half of the channels between a block's two convolutions."""
    kernels = [w for w in model.weights if "inner" in w.path and "kernel" in w.path]
    inner = sum(kernel.shape[-1] for kernel in kernels)
    # An inner channel holds 9 weights a channel of the stream on either side, a bias
    # and four numbers of its normalization.
    each = 2 * int(np.prod(kernels[0].shape[:-1])) + 5
    target = model.count_params() - inner // 2 * each
    limits = {"stem": 0.0, "outer*": 0.0}
    small, _ = surgery.prune_channels(
        model, parameters=target, limits=limits, max_share=0.5
    )
    return small


def person(path):
    """MLPerf Tiny's person detection, saved by Keras 2."""

    class Depthwise(L.DepthwiseConv2D):
        @classmethod
        def from_config(cls, config):
            config.pop("groups", None)  # Keras 2 wrote it, Keras 3 does not know it
            return L.DepthwiseConv2D.from_config(config)

    return keras.models.load_model(
        path, compile=False, custom_objects={"DepthwiseConv2D": Depthwise}
    )


def caller(path):
    """A call of a LiteRT file with one thread, on random input."""
    runner = interpreter(path, threads=1)
    given, made = runner.get_input_details()[0], runner.get_output_details()[0]
    x = np.random.default_rng(0).normal(size=given["shape"]).astype(given["dtype"])

    def call(_):
        runner.set_tensor(given["index"], x)
        runner.invoke()
        return runner.get_tensor(made["index"])

    return call


def files_of(model, folder, name):
    """Its float and its int8 file: kind -> path."""
    x = np.random.default_rng(1).random((32, *model.input_shape[1:])).astype("float32")
    folded = post_training.fold_batch_normalization(model)
    made = {"float": folded, "int8": post_training.quantize(folded, x)}
    paths = {kind: folder / f"{name}_{kind}.tflite" for kind in made}
    for kind, one in made.items():
        dlopt.export.litert(one, paths[kind], data=x[:4])
    return paths


def keras_function(model):
    """TensorFlow's function of a model, on one random example."""
    function = tf.function(lambda x: model(x, training=False))
    x = tf.random.normal((1, *model.input_shape[1:]), seed=0)
    return lambda _: function(x).numpy()


def measure(model, small, calls, folder):
    """Sizes, and times in turns, of a model and of what removal left of it."""
    kinds = {"before": model, "after": small}
    files = {name: files_of(one, folder, name) for name, one in kinds.items()}
    calling = {"tf.function before": keras_function(model)}
    for name, paths in files.items():
        calling |= {f"{kind} {name}": caller(p) for kind, p in paths.items()}
    times = dlopt.measure.latency(calling, None, calls=calls)
    median = {name: time.median for name, time in times.items()}
    costs = {name: dlopt.measure.costs(one) for name, one in kinds.items()}
    return {
        "parameters": {n: one.count_params() for n, one in kinds.items()},
        "macs": {name: cost.macs for name, cost in costs.items()},
        "bytes": {
            n: {k: p.stat().st_size for k, p in f.items()} for n, f in files.items()
        },
        "milliseconds": {name: time.text() for name, time in times.items()},
        "ratios": {
            "float after / before": median["float after"] / median["float before"],
            "int8 after / before": median["int8 after"] / median["int8 before"],
            "float before / int8 after": median["float before"] / median["int8 after"],
            "tf.function / int8 before": median["tf.function before"]
            / median["int8 before"],
            "tf.function / int8 after": median["tf.function before"]
            / median["int8 after"],
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--person", help="mobilenet_person_96.h5 of MLPerf Tiny")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    pairs = {}
    for width in (16, 32, 64):
        model = residual(width)
        pairs[f"residual, width {width}"] = model, without_half_of_the_inner(model)
    mobile = keras.applications.MobileNetV2((96, 96, 3), weights=None, classes=10)
    for name, model in (
        ("MobileNetV2, 96x96", mobile),
        ("ResNet-20", models.resnet20()),
    ):
        pairs[name] = model, surgery.prune_channels(model, macs=0.5)[0]
    if options.person:
        model = person(options.person)
        pairs["person detection"] = model, surgery.remove_dead(model)[0]
    report = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "calls": options.calls,
        "networks": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, small) in pairs.items():
            row = measure(model, small, options.calls, pathlib.Path(folder))
            report["networks"][name] = row
            print(name, json.dumps(row["ratios"]), flush=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
