"""Size and latency of LiteRT files: float, our int8, and post-training int8.

All files come from the same network and run in one process on one thread, interleaved:
each round times each file on batch size 1, and ratios are taken within the round.
Reported are medians over the rounds. Latency does not depend on the weights' values, so
the network is not trained; the activation ranges are set by one batch. The peer is
TensorFlow's own post-training quantization with a representative data set; its speed
should be ours, its numbers are not those of any trained quantizer.

    python benchmarks/litert_int8.py [--networks lenet5 resnet20 mobilenet_small]

Needs ai-edge-litert (pip install 'keras-dlopt[litert]'). `--smoke` runs the smallest
network for one round and writes nothing.
"""

import argparse
import json
import os
import pathlib
import platform
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import tensorflow as tf

import keras_dlopt as dlopt
from keras_dlopt import export, models
from keras_dlopt.export.quiet import silence
from keras_dlopt.export.runtime import interpreter
from keras_dlopt.int8 import int8_recipe

RESULTS = pathlib.Path(__file__).parent / "results" / "litert_int8.json"
WARM_UP, CALLS = 20, 100


def write_files(name, folder):
    """Float, our int8 and post-training int8 file of one network; name -> path."""
    keras.utils.set_random_seed(0)
    model = getattr(models, name)()
    x = np.random.default_rng(0).random((32, *model.input_shape[1:])).astype("float32")
    paths = {
        kind: f"{folder}/{name}_{kind}.tflite" for kind in ("float", "int8", "ptq")
    }
    export.litert(model, paths["float"])
    small = dlopt.transform(model, int8_recipe(model))
    small(x, training=True)
    export.litert(small, paths["int8"])
    with silence():
        model.export(
            paths["ptq"],
            format="litert",
            verbose=False,
            input_signature=[keras.InputSpec(shape=(1, *x.shape[1:]), dtype="float32")],
            optimizations=[tf.lite.Optimize.DEFAULT],
            representative_dataset=lambda: ([row[None]] for row in x),
        )
    return paths


def latency(runner):
    """Median seconds of one call."""
    end = runner.get_input_details()[0]
    runner.set_tensor(end["index"], np.zeros(end["shape"], end["dtype"]))
    times = []
    for i in range(WARM_UP + CALLS):
        start = time.perf_counter()
        runner.invoke()
        if i >= WARM_UP:
            times.append(time.perf_counter() - start)
    return float(np.median(times))


def measure(name, rounds, folder):
    paths = write_files(name, folder)
    runners = {kind: interpreter(path) for kind, path in paths.items()}
    times = {kind: [] for kind in paths}
    for _ in range(rounds):
        for kind, runner in runners.items():
            times[kind].append(latency(runner))
    size = {kind: os.path.getsize(path) for kind, path in paths.items()}
    base = np.array(times["float"])
    return {
        "network": name,
        "bytes": size,
        "size_ratio": {k: round(size["float"] / v, 3) for k, v in size.items()},
        "milliseconds": {
            k: round(1e3 * float(np.median(v)), 4) for k, v in times.items()
        },
        "time_over_float": {
            k: round(float(np.median(np.array(v) / base)), 3) for k, v in times.items()
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks", nargs="+", default=["lenet5", "resnet20", "mobilenet_small"]
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.networks, args.rounds = ["lenet5"], 1
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.networks:
            rows.append(measure(name, args.rounds, folder))
            print(json.dumps(rows[-1]), flush=True)
    if args.smoke:
        return
    result = {
        "command": "python benchmarks/litert_int8.py",
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": 1,
        },
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
        "rounds": args.rounds,
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
