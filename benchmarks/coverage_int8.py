"""Which networks become int8 files, with what in float, beside TFLiteConverter's.

    python benchmarks/coverage_int8.py --out benchmarks/results/coverage_int8.json

The networks of `coverage_families.py`, random weights, statistics of normalizations
measured on the inputs (or their outputs would vanish), go through
`post_training.quantize` and `export.litert` on 32 random inputs; TFLiteConverter
quantizes the same network after training on the same inputs, float where it has to be.
What the files compute is
compared with the float model: the root mean square of the difference over the standard
deviation of the outputs, and how often the largest output is the same. Each network of
keras.applications runs in a process of its own; what is in the file already is skipped.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from coverage_families import build, save
from coverage_names import APPLICATIONS, SMALL

from keras_dlopt.errors import ModelError
from keras_dlopt.post_training import recalibrate_batch_normalization

EXAMPLES = 32
LINKS = ("QUANTIZE", "DEQUANTIZE")


def example(model, shape):
    """Inputs of a network: random numbers, or random words."""
    rng = np.random.default_rng(0)
    inputs = getattr(model, "inputs", None)
    if inputs and inputs[0].dtype == "int32":
        return rng.integers(0, 20, (EXAMPLES, *shape)).astype("int32")
    return rng.normal(size=(EXAMPLES, *shape)).astype("float32")


def ours(model, x, path):
    """What became of the network in two calls."""
    import keras_dlopt as dlopt

    start = time.perf_counter()
    small = dlopt.post_training.quantize(model, x)
    report = dlopt.export.litert(small, path, data=x)
    operators = [island.split(" from ")[0] for island in report.islands]
    names = sorted({i.split(" from ")[1].split(":")[0] for i in report.islands})
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "bytes": report.size,
        "verified": report.verified,
        "islands": dict(collections.Counter(operators)),
        "in": names[:8],
        "levels": round(report.agreement.largest_lsb, 1),
    }


def converters(model, x, path):
    """TFLiteConverter's int8 file, quantized after training."""
    import tensorflow as tf

    start = time.perf_counter()
    call = tf.function(lambda i: model(i, training=False))
    spec = tf.TensorSpec((1, *x.shape[1:]), x.dtype)
    concrete = call.get_concrete_function(spec)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], None)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([one[None]] for one in x)
    data = converter.convert()
    pathlib.Path(path).write_bytes(data)
    seconds = round(time.perf_counter() - start, 1)
    return {"seconds": seconds, "bytes": len(data), "islands": in_float(path)}


def in_float(path):
    """The operators of a file that compute in float, and how many of each."""
    from keras_dlopt.export.contents import read

    contents, found = read(path), collections.Counter()
    for op in contents.operators:
        ends = [contents.tensors[i].dtype for i in (*op.inputs, *op.outputs) if i >= 0]
        if op.name not in LINKS and "FLOAT32" in ends:
            found[op.name] += 1
    return dict(found)


def nearness(path, x, expected):
    """How near a file's outputs are to the float model's."""
    import keras_dlopt as dlopt

    made = dlopt.export.run_litert(path, x).reshape(expected.shape)
    off = float(np.sqrt(np.mean((made - expected) ** 2)) / max(expected.std(), 1e-30))
    same = float(np.mean(made.argmax(-1) == expected.argmax(-1)))
    return {"off": round(off, 4), "top1": round(same, 3)}


def measured(name, out):
    """Writes the row of one network; raises nothing."""
    keras.utils.set_random_seed(0)
    model, shape = build(name, classifier_activation=None)
    x = example(model, shape)
    with contextlib.suppress(ModelError):  # there is no normalization
        recalibrate_batch_normalization(model, x, batch_size=EXAMPLES)
    expected = model.predict(x, verbose=0)
    row = {"network": name, "parameters": model.count_params()}
    before = [one for one in known(out) if one["network"] != name]
    with tempfile.TemporaryDirectory() as folder:
        for who, make in (("ours", ours), ("converter", converters)):
            path = os.path.join(folder, f"{who}.tflite")
            row[who] = {"error": "crash: the process ended"}
            save(out, [*before, row])
            try:
                row[who] = make(model, x, path) | nearness(path, x, expected)
            except Exception as error:
                text = " ".join(str(error).split())[:300]
                row[who] = {"error": f"{type(error).__name__}: {text}"}
    save(out, [*before, row])
    print(json.dumps(row)[:600], flush=True)


def main():
    """Measures what is not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [*SMALL, *APPLICATIONS]
    parser.add_argument("--networks", nargs="*", default=names, choices=names)
    parser.add_argument("--again", action="store_true", help="measure anew")
    parser.add_argument("--timeout", type=int, default=1800, help="per network")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    if args.worker:
        warnings.simplefilter("ignore")
        for name in args.networks:
            keras.utils.clear_session()
            measured(name, args.out)
        return
    done = set() if args.again else {row["network"] for row in known(args.out)}
    todo = [name for name in args.networks if name not in done]
    while todo:
        small = [name for name in todo if name in SMALL]
        names = small or todo[:1]
        command = [sys.executable, __file__, "--worker", "--networks", *names]
        command += ["--out", str(args.out)]
        try:
            subprocess.run(command, timeout=args.timeout, check=False)
        except subprocess.TimeoutExpired:
            print(f"{names}: stopped after {args.timeout} seconds", flush=True)
        # A crash leaves the rest to the next process; one that wrote nothing is left.
        done = {row["network"] for row in known(args.out)} | {names[0]}
        todo = [name for name in todo if name not in done]


def known(path):
    """The rows that are in a file."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


if __name__ == "__main__":
    main()
