"""Latency of our int8 files against other files and runtimes, one thread, batch 1.

    python benchmarks/latency_int8.py [--networks resnet20 ...] [--rounds 60] [--smoke]
    python benchmarks/latency_int8.py --table

Of each network (random weights, calibrated normalizations: time does not depend on
the values) six ways to run it, all in one process and in turns:

- `litert int8`: `export.litert` of the network after `post_training.quantize`, float
  ends; what the others are compared with;
- `litert float`: `export.litert` of the network;
- `tflite converter`: TFLiteConverter's own post-training int8, float ends, in LiteRT;
- `onnxruntime int8`: `export.onnx` of the same quantized network, in ONNX Runtime;
- `onnxruntime float`: of the network as float ONNX;
- `openvino int8`: the int8 ONNX file in OpenVINO.

Each turn times some calls of each, in an order that changes; the ratio to `litert int8`
is taken within the turn, and the median over the turns counts. The machine is shared:
times are the process' own CPU time where the runtime computes in the calling thread, so
that what others take does not count. OpenVINO computes in a thread of its own, so there
the whole process' CPU time is taken for all. Also written: how far each runtime's
outputs are from the simulation's, in levels. Results go to `results/latency_int8.json`
after each network, and `--table` puts them into docs/speed.md. Needs ai-edge-litert,
onnx, onnxruntime, tf2onnx and openvino.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import numpy as np
import tensorflow as tf
from stored import machine

from keras_dlopt import export, models, post_training
from keras_dlopt.export.quiet import silence

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "latency_int8.json"
PAGE = ROOT / "docs" / "speed.md"
BEGIN, END = "<!-- latency: begin -->", "<!-- latency: end -->"
TURN = 0.02  # seconds of each in a turn
OURS = "litert int8"


def application(name, size):
    make = getattr(keras.applications, name)
    shape = (size, size, 3)
    return make(input_shape=shape, weights=None, classifier_activation=None)


NETWORKS = {
    "resnet20": lambda: models.resnet(depth=20, width=16, input_shape=(32, 32, 3)),
    "mobilenet_v2_96": lambda: application("MobileNetV2", 96),
    "resnet50_224": lambda: application("ResNet50", 224),
}


def calibrated(model, x):
    """The model with statistics of what it computes in its normalizations."""
    below = [layer for layer in model.layers if "moving_mean" in dir(layer)]
    for layer in below:
        layer.momentum = 0.0
    model(x, training=True)
    for layer in below:
        layer.momentum = 0.99
    return model


def converter_int8(model, x, path):
    with silence():
        model.export(
            str(path),
            format="litert",
            verbose=False,
            input_signature=[keras.InputSpec(shape=(1, *x.shape[1:]), dtype="float32")],
            optimizations=[tf.lite.Optimize.DEFAULT],
            representative_dataset=lambda: ([row[None]] for row in x),
        )


def write_files(model, x, folder):
    """Way -> file, and what the quantized model computes of x."""
    small = post_training.quantize(model, x)
    names = {
        "litert int8": (export.litert, small, ".tflite"),
        "litert float": (export.litert, model, ".tflite"),
        "onnxruntime int8": (export.onnx, small, ".onnx"),
        "onnxruntime float": (export.onnx, model, ".onnx"),
    }
    files = {}
    for name, (write, made, suffix) in names.items():
        files[name] = folder / (name.replace(" ", "_") + suffix)
        write(made, files[name], verify=False, batch_size=1)
    files["tflite converter"] = folder / "converter.tflite"
    converter_int8(model, x, files["tflite converter"])
    files["openvino int8"] = files["onnxruntime int8"]
    return files, small.predict(x[:8], verbose=0)


def runner(way, path):
    """A function of one example, in one thread."""
    if not way.startswith("openvino"):
        return export.Predictor(path, threads=1)
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(
        core.read_model(path), "CPU", options
    ).create_infer_request()
    return lambda x: request.infer([x])[0]


def seconds(call, x, calls):
    wall, start = time.perf_counter(), time.process_time()
    for _ in range(calls):
        call(x)
    return (time.process_time() - start) / calls, (time.perf_counter() - wall) / calls


def measure(name, rounds):
    keras.utils.set_random_seed(0)
    model = NETWORKS[name]()
    shape = (16, *model.input_shape[1:])
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    calibrated(model, x)
    with tempfile.TemporaryDirectory() as folder:
        files, expected = write_files(model, x, pathlib.Path(folder))
        sizes = {way: path.stat().st_size for way, path in files.items()}
        calls = {way: runner(way, path) for way, path in files.items()}
    level = np.diff(np.unique(expected)).min()
    levels = {}
    for way, call in calls.items():
        if way.endswith("int8"):
            got = np.concatenate([call(x[i : i + 1]) for i in range(8)])
            levels[way] = float(np.abs(got - expected).max() / level)
    one = x[:1]
    counts = {}
    for way, call in calls.items():
        counts[way] = max(1, round(TURN / max(seconds(call, one, 5)[0], 1e-6)))
    ways, times = list(calls), {way: [] for way in calls}
    for turn in range(rounds):
        for way in (*ways[turn % len(ways) :], *ways[: turn % len(ways)]):
            times[way].append(seconds(calls[way], one, counts[way]))
    rows = {}
    for way in ways:
        cpu, wall = np.array(times[way]).T
        ours, ours_wall = np.array(times[OURS]).T
        rows[way] = {
            "cpu_ms": float(np.median(cpu) * 1e3),
            "ratio": float(np.median(cpu / ours)),
            "ratio_10": float(np.quantile(cpu / ours, 0.1)),
            "ratio_90": float(np.quantile(cpu / ours, 0.9)),
            "wall_ratio": float(np.median(wall / ours_wall)),
            "bytes": sizes[way],
        }
        if way in levels:
            rows[way]["levels_from_simulation"] = levels[way]
    return rows


def table():
    """Puts the results into docs/speed.md."""
    found = json.loads(RESULTS.read_text())["networks"]
    ways = [way for way in next(iter(found.values())) if way != OURS]
    lines = [
        f"| network | {OURS}, ms | {' | '.join(ways)} | converter's size | ours |",
        "|---" * (len(ways) + 4) + "|",
    ]
    for name, rows in found.items():
        cells = [f"{rows[OURS]['cpu_ms']:.2f}"]
        cells += [f"{rows[way]['ratio']:.2f}" for way in ways]
        cells += [f"{rows[way]['bytes']:,}" for way in ("tflite converter", OURS)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = PAGE.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    rows = "\n".join(lines)
    PAGE.write_text(f"{before}{BEGIN}\n{rows}\n{END}{after}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        return table()
    known = json.loads(RESULTS.read_text())["networks"] if RESULTS.exists() else {}
    for name in options.networks[:1] if options.smoke else options.networks:
        known[name] = measure(name, 2 if options.smoke else options.rounds)
        for way, row in known[name].items():
            print(name, way, row, flush=True)
        if not options.smoke:
            result = {"machine": machine(), "rounds": options.rounds, "networks": known}
            RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
