"""Size of MNIST and Fashion-MNIST as shards, and the time to read them.

    KERAS_DLOPT_DATA=... python benchmarks/shards.py [--repeats 9]

Both as published: images and labels of the training set in gzip idx files. Read means:
all batches of 256 out of a `tf.data.Dataset`. The idx files are decoded with Python's
gzip and NumPy and handed to `tf.data` whole. The two are read in turns, each in this
process, from files that the system has in memory; the ratio is that of the medians. The
time is that of the clock and the CPU's: blocks are decoded by several threads.
"""

import argparse
import gzip
import json
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from keras_dlopt.data import read_shards, verify_shards, write_shards

RESULTS = pathlib.Path(__file__).parent / "results" / "shards.json"
FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")


def arrays(folder):
    """Images and labels of the gzip idx files."""
    images, labels = (gzip.decompress((folder / name).read_bytes()) for name in FILES)
    x = np.frombuffer(images, "uint8", offset=16).reshape(-1, 28, 28, 1)
    return x, np.frombuffer(labels, "uint8", offset=8)


def through(data):
    """Reads a data set to its end: examples, and a sum that shows all were there."""

    def add(found, batch):
        x, y = (tf.cast(one, tf.int64) for one in (batch[0][:, 14, 14, 0], batch[1]))
        return found[0] + tf.size(y, tf.int64), found[1] + tf.reduce_sum(x + y)

    zero = tf.constant(0, tf.int64)
    return tuple(int(n) for n in data.reduce((zero, zero), add))


def timed(function):
    clock, cpu = time.perf_counter(), time.process_time()
    found = function()
    return found, time.perf_counter() - clock, time.process_time() - cpu


def measure(folder, repeats):
    x, y = arrays(folder)
    plain = sum((folder / name).stat().st_size for name in FILES)
    with tempfile.TemporaryDirectory() as out:
        report = write_shards((x, y), out)
        assert verify_shards(out) == len(x)

        def idx():
            data = tf.data.Dataset.from_tensor_slices(arrays(folder)).batch(256)
            return through(data)

        ways = {"idx": idx, "shards": lambda: through(read_shards(out, batch_size=256))}
        seen = {name: [] for name in ways}
        for _ in range(repeats):
            found = {name: timed(way) for name, way in ways.items()}
            assert found["idx"][0] == found["shards"][0]
            for name, (_, *times) in found.items():
                seen[name].append(times)
    medians = {name: np.median(times, axis=0) for name, times in seen.items()}
    ratio = medians["idx"] / medians["shards"]
    return {
        "gzip idx bytes": plain,
        "shard bytes": report.file_bytes,
        "filters": report.filters,
        "seconds to write": round(report.seconds, 1),
        "seconds": {n: [round(float(t), 4) for t in m] for n, m in medians.items()},
        "times faster": round(float(ratio[0]), 2),
        "times less CPU": round(float(ratio[1]), 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    root = pathlib.Path(os.environ["KERAS_DLOPT_DATA"])
    found = {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "repeats": args.repeats,
    }
    for name in ("mnist", "fashion_mnist"):
        found[name] = measure(root / name, args.repeats)
        print(name, found[name], flush=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
