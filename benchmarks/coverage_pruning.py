"""Which networks lose 30 % of their free channels and train on.

    python benchmarks/coverage_pruning.py --out benchmarks/results/coverage_pruning.json

The networks of `coverage_families.py`: blocks are taken apart (`surgery.opened`), then
`prune_channels(..., normalized=True)` takes the least important 30 % of the channels
of every layer that may lose some, as far as they divide; what is left trains two
steps, is saved as `.keras`, loaded and compared to the last bit. Each network runs in
a process of its own; one that is in the file already is skipped.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import time
import traceback

import keras
import numpy as np
from coverage_families import SMALL, build, save, train_and_reload
from coverage_names import APPLICATIONS

SHARE = 0.3


def least_parameters(found):
    """What is left of the parameters when every layer loses its share."""
    from keras_dlopt.surgery.scores import ChannelNorm, group_scores
    from keras_dlopt.surgery.selection import Selection
    from keras_dlopt.surgery.sizes import Sizes

    scores = group_scores(found, ChannelNorm(), None)
    selection = Selection(found, scores, multiple=1, limits={}, max_share=SHARE)
    gone = selection.gone(selection.leaving(len(selection)))
    return Sizes(found).parameters(gone)


def examples(model, shape):
    """Four random examples and labels."""
    rng = np.random.default_rng(0)
    inputs = getattr(model, "inputs", None)
    if inputs and inputs[0].dtype == "int32":
        x = rng.integers(0, 20, (4, *shape)).astype("int32")
    else:
        x = rng.normal(size=(4, *shape)).astype("float32")
    return x, rng.integers(0, 10, 4)


def held(found):
    """Class of layer and reason -> how many groups it holds, the most first."""
    count = collections.Counter()
    for pin in found.pinned:
        if pin.kind not in ("Input", "Output"):
            count[f"{pin.kind}: {pin.reason}"] += pin.groups
    return dict(count.most_common(4))


def attempt(name):
    """Prunes, trains, saves, loads, compares; never raises."""
    from keras_dlopt import surgery

    keras.utils.set_random_seed(0)
    start = time.perf_counter()
    row = {"network": name, "method": "prune_channels"}
    try:
        model, shape = build(name)
        x, y = examples(model, shape)
        model = surgery.opened(model, example=x[:1])
        found = surgery.dependencies(model, normalized=True)
        row |= {"groups": found.count, "free": len(found.free), "pins": held(found)}
        small, report = surgery.prune_channels(
            model,
            parameters=least_parameters(found),
            multiple=1,
            max_share=SHARE,
            normalized=True,
        )
        row["parameters"] = [report.parameters_before, report.parameters_after]
        row["macs"] = [report.macs_before, report.macs_after]
        train_and_reload(small, x, y, eager=True)
        row["result"] = "ok"
    except Exception as error:
        row["result"] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        row["trace"] = traceback.format_exc()[-1500:]
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def main():
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [*SMALL, *APPLICATIONS]
    parser.add_argument("--networks", nargs="*", default=names, choices=names)
    parser.add_argument("--again", action="store_true", help="rerun what failed")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    for name in args.networks:
        rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
        if args.again:
            rows = [r for r in rows if r["network"] != name or r["result"] == "ok"]
        if any(row["network"] == name for row in rows):
            continue
        if args.worker:
            rows.append(attempt(name))
            print(json.dumps(rows[-1]), flush=True)
            save(args.out, rows)
        else:
            save(args.out, rows)
            command = [sys.executable, __file__, "--worker", "--networks", name]
            subprocess.run([*command, "--out", str(args.out)], check=False)


if __name__ == "__main__":
    main()
