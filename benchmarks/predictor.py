"""Time of `export.Predictor` against the bare runtime on the same file and batch.

    python benchmarks/predictor.py [--rounds 100] [--smoke]

ResNet-20 and LeNet-5 as float and int8 files, .tflite of a fixed and of an open batch
size and .onnx, batches of 1 and 32, one thread. The bare runtime is called as its
manual says: tensor in, invoke, tensor out; one call where the batch is open, a call an
example where it is fixed; where the ends are int8 it rounds and scales as a user would
have to. Both are called in turns, some milliseconds each; a ratio is taken within each
turn, and the median over the turns counts. Time is the thread's own (CPU time), since
others use the machine; wall time on it is off by a third from turn to turn. Results go
to `results/predictor.json`. Needs ai-edge-litert, onnx, onnxruntime and tf2onnx.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from stored import machine

from keras_dlopt import export, models, post_training
from keras_dlopt.export.onnx_runtime import session
from keras_dlopt.export.runtime import interpreter

RESULTS = pathlib.Path(__file__).parent / "results" / "predictor.json"
NETWORKS = {
    "resnet20": lambda: models.resnet(depth=20, width=16, input_shape=(32, 32, 3)),
    "lenet5": models.lenet5,
}
BATCHES = (1, 32)
BAR = 1.10
TURN = 0.006  # seconds


def write_files(model, folder):
    """Kind -> file."""
    shape = (64, *model.input_shape[1:])
    x = np.random.default_rng(0).random(shape).astype("float32")
    small = post_training.quantize(model, x)
    found = {}
    for kind, made, options in (
        ("float", model, {}),
        ("int8", small, {}),
        ("int8 ends", small, {"io": "int8"}),
    ):
        for batch in (1, None):
            name = f"{kind}, {'open' if batch is None else 'one'}"
            found[name] = folder / f"{len(found)}.tflite"
            export.litert(made, found[name], verify=False, batch_size=batch, **options)
    for kind, made in (("float", model), ("int8", small)):
        found[f"{kind}, onnx"] = folder / f"{kind}.onnx"
        export.onnx(made, found[f"{kind}, onnx"], verify=False)
    return found


def bare(path, rows):
    """A function of a batch of `rows`, by the runtime alone."""
    if path.suffix == ".onnx":
        run = session(path)
        (name,) = (end.name for end in run.get_inputs())
        return lambda x: run.run(None, {name: x})[0]
    it = interpreter(path)
    given, made = it.get_input_details()[0], it.get_output_details()[0]
    is_open = given["shape_signature"][0] < 0
    if is_open:
        it.resize_tensor_input(given["index"], (rows, *given["shape"][1:]))
        it.allocate_tensors()

    def call(x):
        if given["dtype"] == np.int8:
            scale, zero = given["quantization"]
            x = np.clip(np.floor(x / scale + 0.5) + zero, -128, 127).astype("int8")
        parts = []
        for part in (x,) if is_open else (x[i : i + 1] for i in range(len(x))):
            it.set_tensor(given["index"], part)
            it.invoke()
            parts.append(it.get_tensor(made["index"]))
        out = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if made["dtype"] == np.int8:
            scale, zero = made["quantization"]
            out = (out.astype("float32") - zero) * np.float32(scale)
        return out

    return call


def seconds(call, x, calls):
    start = time.thread_time()
    for _ in range(calls):
        call(x)
    return (time.thread_time() - start) / calls


def compare(path, x, rounds):
    """Median time of the bare runtime, and the ratio of Predictor's to it."""
    both = bare(path, len(x)), export.Predictor(path)
    expected, got = (call(x) for call in both)
    assert np.abs(expected - got).mean() < 1e-3 * np.abs(expected).max()
    calls = max(2, round(TURN / max(seconds(both[0], x, 3), 1e-7)))
    times = []
    for turn in range(rounds):
        order = both if turn % 2 else both[::-1]
        pair = [seconds(call, x, calls) for call in order]
        times.append(pair if turn % 2 else pair[::-1])
    times = np.array(times)
    ratios = times[:, 1] / times[:, 0]
    return {
        "bare_us": float(np.median(times[:, 0]) * 1e6),
        "ratio": float(np.median(ratios)),
        "ratio_10": float(np.quantile(ratios, 0.1)),
        "ratio_90": float(np.quantile(ratios, 0.9)),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    rows = []
    for name in options.networks[-1:] if options.smoke else options.networks:
        model = NETWORKS[name]()
        with tempfile.TemporaryDirectory() as folder:
            for kind, path in write_files(model, pathlib.Path(folder)).items():
                for batch in BATCHES:
                    shape = (batch, *model.input_shape[1:])
                    x = np.random.default_rng(1).random(shape).astype("float32")
                    found = compare(path, x, 2 if options.smoke else options.rounds)
                    rows.append({"network": name, "file": kind, "batch": batch} | found)
                    print(rows[-1], flush=True)
    worst = max(row["ratio"] for row in rows)
    print(f"worst ratio {worst:.3f}, bar {BAR}")
    if not options.smoke:
        result = {"bar": BAR, "worst": worst, "machine": machine(), "rows": rows}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
