"""Bytes and speed of the tensor codec beside zstd and constriction, one core.

    python benchmarks/codec.py [--section NAME ...] [--elements 10000000]
        [--data FOLDER] [--out FILE]

Three streams of int8 as pruned, quantized and ternary layers give them, floats, and the
kernels of MLPerf Tiny's networks (`mlperf_tiny` in the folder of data), pruned to 10 %
by magnitude over all layers of a network and rounded to 31 levels. Speed is the best of
several runs, in CPU time, taken in turns with the others; sizes are of whole records.
The section `resnet50` saves and loads a whole model in turns with Keras' own file
(`codec_resnet50.py`), `others` are sizes beside general compressors
(`codec_others.py`). Sections that are not asked for stay as they are in the file.
"""

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import codec_others
import numpy as np
import zstandard

from keras_dlopt.codecs.entropy import entropy_bits
from keras_dlopt.codecs.reader import Reader
from keras_dlopt.codecs.tensor import decode_tensor, encode_tensor

RESULTS = pathlib.Path(__file__).parent / "results" / "codec.json"
RUNS = 5


def streams(n):
    rng = np.random.default_rng(0)
    values = np.clip(np.rint(rng.normal(0, 30, n)), -127, 127)
    signs = np.where(rng.random(n) < 0.5, -1, 1)
    return {
        "90 % zeros": np.where(rng.random(n) < 0.1, values, 0).astype(np.int8),
        "int8": np.clip(np.rint(rng.normal(0, 25, n)), -127, 127).astype(np.int8),
        "ternary 1 %": np.where(rng.random(n) < 0.01, signs, 0).astype(np.int8),
        "float32": rng.normal(0, 0.05, n).astype(np.float32),
    }


def bound(array):
    """Order-0 entropy in bytes; of floats, of their exponents, and the rest."""
    if array.dtype == np.float32:
        exponents = array.reshape(-1).view(np.uint32) >> 23 & 255
        return entropy_bits(np.bincount(exponents)) / 8 + 3 * array.size
    return entropy_bits(np.unique(array, return_counts=True)[1]) / 8


def best(actions):
    """The least CPU time of each, the runs taken in turns."""
    least = dict.fromkeys(actions, float("inf"))
    for _ in range(RUNS):
        for name, action in actions.items():
            start = time.process_time()
            action()
            least[name] = min(least[name], time.process_time() - start)
    return least


def numpy_alone(action):
    os.environ["KERAS_DLOPT_NO_NUMBA"] = "1"
    try:
        start = time.process_time()
        action()
        return time.process_time() - start
    finally:
        del os.environ["KERAS_DLOPT_NO_NUMBA"]


def constriction_decoder(array):
    import constriction

    low = int(array.min())
    symbols = (array.reshape(-1).astype(np.int32) - low).astype(np.int32)
    counts = np.bincount(symbols).astype(np.float64)
    model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols, model)
    words = coder.get_compressed()
    return lambda: constriction.stream.stack.AnsCoder(words).decode(model, array.size)


def row(name, array):
    record = encode_tensor(array)
    packed = zstandard.compress(array.tobytes(), 3)
    actions = {
        "encode": lambda: encode_tensor(array),
        "decode": lambda: decode_tensor(Reader(record, max_bytes=2**40)),
        "zstd-3": lambda: zstandard.decompress(packed),
    }
    if array.dtype == np.int8:
        actions["constriction"] = constriction_decoder(array)
    seconds = best(actions)
    seconds["numpy decode"] = numpy_alone(actions["decode"])
    least = bound(array)
    return {
        "stream": name,
        "method": decode_tensor(Reader(record, max_bytes=2**40)).method,
        "bytes": len(record),
        "entropy_bytes": round(least, 1),
        "over_entropy": round(len(record) / least - 1, 6),
        "zstd_3_bytes": len(packed),
        "million_elements_a_second": {
            key: round(array.size / s / 1e6, 1) for key, s in seconds.items()
        },
    }


def kernels(path):
    import h5py

    found = []

    def see(name, item):
        kernel = isinstance(item, h5py.Dataset) and item.ndim > 1
        if kernel and item.size >= 2000 and "optimizer" not in name:
            found.append(item[()].astype(np.float32))

    with h5py.File(path) as file:
        file.visititems(see)
    sizes = np.concatenate([np.abs(k).reshape(-1) / k.std() for k in found])
    least = np.quantile(sizes, 0.9)
    for kernel in found:
        kept = np.where(np.abs(kernel) / kernel.std() > least, kernel, 0)
        codes = np.rint(15 * kept / max(np.abs(kept).max(), 1e-9)).astype(np.int8)
        if codes.any():
            yield codes


def network(path):
    total, size, methods = 0.0, 0, []
    for codes in kernels(path):
        record = encode_tensor(codes)
        total, size = total + bound(codes), size + len(record)
        methods.append(decode_tensor(Reader(record, max_bytes=2**40)).method)
    return {
        "network": path.stem,
        "bytes": size,
        "entropy_bytes": round(total, 1),
        "over_entropy": round(size / total - 1, 4),
        "methods": sorted(set(methods)),
    }


def resnet50(args):
    script = pathlib.Path(__file__).with_name("codec_resnet50.py")
    for options in ([], ["--pruned"]):
        found = {"kernels": "80 % zeros" if options else "dense"}
        with tempfile.TemporaryDirectory() as folder:
            for what in ("seconds", "save", "load"):
                command = [sys.executable, str(script), what, folder, *options]
                done = subprocess.run(command, capture_output=True, check=True)
                found[what] = json.loads(done.stdout.splitlines()[-1])
        taken = found["seconds"]["cpu_seconds"]
        found["load_over_keras"] = round(taken["load"] / taken["keras load"], 3)
        found["save_over_keras"] = round(taken["save"] / taken["keras save"], 3)
        yield found


def pruned_networks(args):
    for path in sorted(pathlib.Path(args.data, "mlperf_tiny").glob("*.h5")):
        if "wakeword" not in path.name:
            yield network(path)


SECTIONS = {
    "pruned_networks": pruned_networks,
    "streams": lambda args: itertools.starmap(row, streams(args.elements).items()),
    "resnet50": resnet50,
    "others": lambda args: codec_others.rows(args.data),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--elements", type=int, default=10_000_000)
    parser.add_argument("--data", default=os.environ.get("KERAS_DLOPT_DATA", "."))
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    out = json.loads(args.out.read_text()) if args.out.exists() else {}
    if "streams" in args.section:
        out["elements"] = args.elements
    for name in args.section:
        out[name] = []
        for found in SECTIONS[name](args):
            out[name].append(found)
            args.out.write_text(json.dumps(out, indent=1) + "\n")
            print(found, flush=True)


if __name__ == "__main__":
    main()
