"""The demo over several seeds: how far the compressed model is from its float one.

    python benchmarks/demo_seeds.py --seeds 5

writes `benchmarks/results/demo_seeds.json` with one row a seed, mean and worst. Times
are of this machine while it ran and no more than that.
"""

import argparse
import json
import pathlib
import statistics
import tempfile

from keras_dlopt import demo

RESULTS = pathlib.Path(__file__).parent / "results"


def row(seed, data, folder):
    result = demo.run(demo.Settings(data=data, seed=seed, out=folder / str(seed)))
    parent, small, int8 = result.parent, result.compressed, result.int8
    return result.versions, {
        "seed": seed,
        "accuracy_float": parent.quality.accuracy,
        "accuracy_compressed": small.quality.accuracy,
        "accuracy_int8": int8.quality.accuracy,
        "drop": parent.quality.accuracy - small.quality.accuracy,
        "churn": result.compressed_changes.churn,
        "bytes_plain": parent.ledger.plain_bytes,
        "bytes_compressed": small.ledger.file_bytes,
        "bytes_int8": result.export.size,
        "ratio": small.ledger.ratio,
        "sparsity": small.sparsity,
        "seconds": result.seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", default="digits")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            versions, one = row(seed, args.data, pathlib.Path(folder))
            rows.append(one)
            print(json.dumps(one), flush=True)
    summary = {
        "data": args.data,
        "versions": versions,
        "mean_drop": statistics.mean(r["drop"] for r in rows),
        "worst_drop": max(r["drop"] for r in rows),
        "mean_ratio": statistics.mean(r["ratio"] for r in rows),
        "longest_seconds": max(r["seconds"] for r in rows),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "demo_seeds.json").write_text(json.dumps(summary, indent=1) + "\n")
    print({k: v for k, v in summary.items() if k not in ("rows", "versions")})


if __name__ == "__main__":
    main()
