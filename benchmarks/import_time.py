"""What `import keras_dlopt` adds to `import keras`, in fresh processes in turns.

    python benchmarks/import_time.py                       # the package as installed
    python benchmarks/import_time.py --trees ../before .   # checkouts, in turns

prints the medians and writes `benchmarks/results/import_time.json`. One process imports
Keras and then this package, and counts its own CPU seconds, which other processes do
not change much. Byte code is kept from a first round that does not count, as it is in
an installed package.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

CODE = """
import json, sys, time
start = time.process_time()
import keras
middle, before = time.process_time(), len(sys.modules)
import keras_dlopt
end, after = time.process_time(), len(sys.modules)
print(json.dumps([middle - start, end - middle, after - before, keras.__version__]))
"""
RESULTS = pathlib.Path(__file__).parent / "results"


def measure(tree, bytecode):
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if tree:
        environment["PYTHONPATH"] = str(pathlib.Path(tree).resolve())
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=bytecode,  # not a checkout, which would be found first
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def row(rounds):
    """Medians and spread of one tree."""
    keras_seconds = statistics.median(r[0] for r in rounds)
    added = statistics.median(r[1] for r in rounds)
    return {
        "keras_seconds": keras_seconds,
        "added_seconds": added,
        "added_lowest": min(r[1] for r in rounds),
        "added_highest": max(r[1] for r in rounds),
        "modules": rounds[0][2],
        "ratio": (keras_seconds + added) / keras_seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--trees", nargs="+", default=[""])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as bytecode:
        runs = {tree: [measure(tree, bytecode)] for tree in args.trees}
        for _ in range(args.rounds):
            for tree, rounds in runs.items():
                rounds.append(measure(tree, bytecode))
    rows = {tree: row(rounds[1:]) for tree, rounds in runs.items()}
    last = rows[args.trees[-1]]
    result = {
        **last,
        "clock": "CPU seconds of the process",
        "rounds": args.rounds,
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "keras": runs[args.trees[-1]][0][3],
        "machine": f"{platform.machine()}, {platform.processor() or 'CPU'}",
    }
    if len(rows) > 1:
        result["before"] = rows[args.trees[0]]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "import_time.json").write_text(json.dumps(result, indent=1) + "\n")
    for tree, one in rows.items():
        print(
            f"{tree or 'installed'}: import keras {one['keras_seconds']:.2f} s, "
            f"keras_dlopt adds {one['added_seconds']:.3f} s "
            f"({one['added_lowest']:.3f} to {one['added_highest']:.3f}), "
            f"{one['modules']} modules"
        )


if __name__ == "__main__":
    main()
