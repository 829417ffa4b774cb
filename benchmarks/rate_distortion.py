"""`post_training.rate_distortion` beside rounding to the nearest: bytes and error.

    KERAS_DLOPT_DATA=... nice -n 19 python benchmarks/rate_distortion.py

The LeNets of `records_call.py`, in float, are rounded without training: the call is
given the first 1,024 training images without labels and bytes for the kernels;
rounding to the nearest has one step a kernel, its largest weight over 2^(bits - 1) - 1.
Nothing was chosen by these figures, which are of the test images; the file is read
back. A finished row is written at once and not run again.
"""

import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import functools

import keras
import numpy as np
import records_call
from records import add, asked, error, kept

import keras_dlopt as dlopt

RESULTS = pathlib.Path(__file__).parent / "results" / "rate_distortion.json"
ROWS = {
    "lenet_300_100": (100_000, 60_000, 40_000, 25_000),
    "lenet5": (120_000, 80_000, 50_000, 30_000),
}
BITS, IMAGES = (8, 5, 4, 3), 1024


def nearest(net, bits):
    for layer in net.layers:
        if layer.weights:
            value = np.asarray(layer.kernel)
            step = np.float32(np.abs(value).max() / (2 ** (bits - 1) - 1))
            layer.kernel.assign(np.rint(value / step).astype(int) * step)
    return net


def judged(net, data, start):
    """Of a network: its file, read back."""
    seconds = round(time.process_time() - start, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.dlopt")
        size = dlopt.save_compressed(net, path).file_bytes
        found = error(dlopt.load_compressed(path), *data.test)
    return {"bytes": size, "error": round(found, 2), "seconds": seconds}


def run(name, seed, how, folder):
    data = dlopt.data.load("mnist")

    def parent(place):
        records_call.trained(name, data, seed).save(place / "float.keras")

    what = {"parent": name, "seed": seed, **records_call.given(name)}
    place, _ = kept(parent, folder, what)
    net = keras.models.load_model(place / "float.keras", compile=False)
    found = {"error_float": round(error(net, *data.test), 2)}
    start, size = time.process_time(), how.get("budget")
    if size is None:
        return {**found, **judged(nearest(net, how["bits"]), data, start)}
    x = data.x_train[:IMAGES]
    small = dlopt.post_training.rate_distortion(net, x, budget=size)
    return {**found, **judged(small, data, start)}


def main():
    args, _, _ = asked(__doc__, ROWS, 3, RESULTS)
    for name in args.rows:
        ways = [{"budget": size} for size in ROWS[name]]
        ways += [{"bits": bits} for bits in BITS]
        for seed in range(args.seeds):
            for how in ways:
                told = {"network": name, "seed": seed, **how}
                make = functools.partial(run, name, seed, how, args.keep)
                add(args.out, told, lambda m=make, t=told: {**t, **m()})


if __name__ == "__main__":
    main()
