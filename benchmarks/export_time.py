"""Time of our verified int8 file against TFLiteConverter's unverified one.

    nice -n 19 python benchmarks/export_time.py [--networks resnet20 mobilenet_v2_96]

Ours is `post_training.quantize`, then `export.litert` with `data`: codes and ranges are
read back, each int8 operation compared on its own, outputs judged against the runtime's
noise. Theirs is `TFLiteConverter.from_keras_model` with `Optimize.DEFAULT` and the same
examples as representative data, which checks nothing. Both are timed in turn in one
process, and ratios are taken within a round. On a shared machine the seconds of the
processor say more than those of the clock; both are written, after every network.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_dlopt as dlopt
from keras_dlopt.export.quiet import silence

RESULTS = pathlib.Path(__file__).parent / "results" / "export_time.json"
NETWORKS = {
    "resnet20": lambda: dlopt.models.resnet20(),
    "mobilenet_v2_96": lambda: keras.applications.MobileNetV2(
        input_shape=(96, 96, 3), weights=None, classes=10
    ),
    "resnet50_224": lambda: keras.applications.ResNet50(weights=None),
}


def ours(model, x, path):
    """A quantized, exported and verified file."""
    small = dlopt.post_training.quantize(model, x)
    return dlopt.export.litert(small, path, data=x)


def theirs(model, x, path):
    """What TFLiteConverter makes of the same model and examples."""
    with silence():
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([row[None]] for row in x)
        path.write_bytes(converter.convert())


def timed(make, *args):
    """Seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    made = make(*args)
    took = time.perf_counter() - clock, time.process_time() - processor
    return took, made


def measured(name, examples, rounds, folder):
    """The row of one network."""
    keras.utils.set_random_seed(0)
    model = NETWORKS[name]()
    shape = (examples, *model.input_shape[1:])
    x = np.random.default_rng(0).random(shape).astype("float32")
    rows = []
    for _ in range(rounds):
        (clock, processor), report = timed(ours, model, x, folder / "ours.tflite")
        (other, their_processor), _ = timed(theirs, model, x, folder / "theirs.tflite")
        rows.append((clock, other, processor, their_processor))
    medians = [
        round(statistics.median(column), 2) for column in zip(*rows, strict=True)
    ]
    keys = ("seconds", "seconds_converter", "processor", "processor_converter")
    return {
        "name": name,
        "examples": examples,
        "rounds": rounds,
        **dict(zip(keys, medians, strict=True)),
        "ratio": round(statistics.median(r[0] / r[1] for r in rows), 3),
        "ratio_processor": round(statistics.median(r[2] / r[3] for r in rows), 3),
        "bytes": report.size,
        "bytes_converter": (folder / "theirs.tflite").stat().st_size,
        "checked": str(report).splitlines()[1:],
    }


def main():
    """Measures and writes the JSON after every network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = {}
    if RESULTS.exists():
        rows = {row["name"]: row for row in json.loads(RESULTS.read_text())["rows"]}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.networks:
            row = measured(name, args.examples, args.rounds, pathlib.Path(folder))
            print(json.dumps(row))
            rows[name] = row
            RESULTS.write_text(json.dumps({"rows": [*rows.values()]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
