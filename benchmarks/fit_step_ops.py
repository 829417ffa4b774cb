"""Which ops a training step of `fit` consists of, and how long each kind takes.

Traces a few steps of the same network in plain Keras 3, ours and tf_keras with
TensorFlow's profiler and sums the durations by kind of op. One thread, so that the sums
are the step. Three traces of each, interleaved; the smallest sum of each kind counts,
since other work on the machine can only stretch it.

    python benchmarks/fit_step_ops.py [--network resnet20] [--batch 64]

Needs tf-keras beside keras (pip install 'keras-dlopt[bench]').
"""

# ruff: noqa: E402  the environment must be set before TensorFlow starts
import argparse
import collections
import json
import os
import pathlib
import tempfile

for _name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
    os.environ[_name] = "1"

import fit_step
import numpy as np
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from keras_dlopt import data

RESULTS = pathlib.Path(__file__).parent / "results" / "fit_step_ops.json"
STEPS = 10
NAMES = ("keras", "ours", "tf_keras")


def traced(model, x, y, batch):
    """Sum of durations in ms per step, and number of runs per step, by kind of op."""
    feed = data.batches(x, y, batch_size=batch)
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        model.fit(feed, shuffle=False, verbose=0)
        tf.profiler.experimental.stop()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace()
        space.ParseFromString(path.read_bytes())
    return by_kind(space)


def is_op(kind):
    """Whether it is an op of the step: no dataset, nothing of the runtime's own."""
    native = kind.startswith("_Mkl") or kind.startswith("_Fused")
    return native or (hasattr(tf.raw_ops, kind) and not kind.endswith("Dataset"))


def by_kind(space):
    milliseconds, runs = collections.Counter(), collections.Counter()
    for plane in space.planes:
        if not plane.name.startswith("/host:CPU"):
            continue
        names = {key: value.name for key, value in plane.event_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                _, colon, kind = names[event.metadata_id].rpartition(":")
                if colon and is_op(kind):
                    milliseconds[kind] += event.duration_ps / 1e9 / STEPS
                    runs[kind] += 1
    return milliseconds, {kind: count / STEPS for kind, count in runs.items()}


def interleaved(made, x, y, batch):
    for name in NAMES:
        made[name][0].fit(
            data.batches(x, y, batch_size=batch), shuffle=False, verbose=0
        )
    best = {}
    for _ in range(3):
        for name in NAMES:
            milliseconds, runs = traced(made[name][0], x, y, batch)
            kept = best.setdefault(name, (milliseconds, runs))[0]
            for kind, value in milliseconds.items():
                kept[kind] = min(kept.get(kind, value), value)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    count = args.batch * STEPS
    x = rng.uniform(size=(count, *fit_step.SHAPE)).astype("float32")
    y = rng.integers(0, 10, count).astype("int32")
    made = fit_step.contenders(args.network)
    traces = interleaved(made, x, y, args.batch)
    kinds = sorted(
        {k for ms, _ in traces.values() for k in ms},
        key=lambda kind: -max(ms[kind] for ms, _ in traces.values()),
    )
    table = {
        kind: {
            name: {"ms": round(ms[kind], 3), "runs": round(runs.get(kind, 0), 1)}
            for name, (ms, runs) in traces.items()
        }
        for kind in kinds
    }
    totals = {
        name: {"ms": round(sum(ms.values()), 2), "runs": round(sum(runs.values()), 1)}
        for name, (ms, runs) in traces.items()
    }
    result = {
        "machine": fit_step.machine(),
        "network": args.network,
        "batch": args.batch,
        "all ops, per step": totals,
        "by kind, per step": table,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(totals))
    for kind in kinds[:30]:
        print(
            f"{kind:28}",
            *(f"{v['ms']:9.2f} x{v['runs']:<7}" for v in table[kind].values()),
        )


if __name__ == "__main__":
    main()
