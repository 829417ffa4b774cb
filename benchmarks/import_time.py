"""What `import keras_dlopt` adds to `import keras`, in fresh processes in turns.

    python benchmarks/import_time.py

prints the medians and writes `benchmarks/results/import_time.json`. One process imports
Keras and then this package and times both, so that a slow moment of the machine hits
both; the figure is the median of the differences over the rounds.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

CODE = """
import json, time
start = time.perf_counter()
import keras
middle = time.perf_counter()
import keras_dlopt
end = time.perf_counter()
print(json.dumps([middle - start, end - middle, keras.__version__]))
"""
RESULTS = pathlib.Path(__file__).parent / "results"


def measure():
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    measure()  # fills the disk cache
    rounds = [measure() for _ in range(args.rounds)]
    keras_seconds = statistics.median(r[0] for r in rounds)
    added = statistics.median(r[1] for r in rounds)
    result = {
        "keras_seconds": keras_seconds,
        "added_seconds": added,
        "added_lowest": min(r[1] for r in rounds),
        "added_highest": max(r[1] for r in rounds),
        "ratio": (keras_seconds + added) / keras_seconds,
        "rounds": args.rounds,
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "keras": rounds[0][2],
        "machine": f"{platform.machine()}, {platform.processor() or 'CPU'}",
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "import_time.json").write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"import keras {keras_seconds:.2f} s, keras_dlopt adds {added:.3f} s "
        f"({result['added_lowest']:.3f} to {result['added_highest']:.3f}), "
        f"ratio {result['ratio']:.3f}"
    )


if __name__ == "__main__":
    main()
