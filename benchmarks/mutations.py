"""A million files with damage that their checksums do not show, and what reads them.

    python benchmarks/mutations.py [--count 1000000] [--seconds 3000] [--out FILE]

Small files of every version of the format and records of every coder (`tests/golden`),
and a difference to another model with its base, are altered in a few places; the
checksum is made to fit. Whatever is read must end as arrays or as `FormatError`, within
seconds. File i is made from the seed (0, i) alone, so a run goes on where the one
before it stopped; how many ran is written every 1,000 files. A file that breaks the
rule is named with its number, and the run ends.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np

from keras_dlopt.codecs import Tensor
from keras_dlopt.codecs.container import limit_of, version_of
from keras_dlopt.errors import FormatError
from keras_dlopt.storage.contents import SavedState, read_contents, write_contents

TESTS = pathlib.Path(__file__).parents[1] / "tests"
GOLDEN = TESTS / "golden"
sys.path.insert(0, str(TESTS))

from support.altered import broken, mutated  # noqa: E402

RESULTS = pathlib.Path(__file__).parent / "results" / "mutations.json"
MOST_SECONDS = 2.0
LARGEST = 2**14  # bytes of a file that is altered
RECORD_BYTES = 2**20  # that the array of an altered record may take
WRITTEN_EVERY = 1000


def delta():
    """A file that is a difference, and its base."""
    rng = np.random.default_rng(0)
    base = [rng.normal(size=(20, 10)).astype("float32") for _ in range(3)]
    near = (base[1].view(np.int32) + rng.integers(-9, 10, (20, 10), "int32")).view("f4")
    known = ["a", "b", "c"], base
    state = SavedState(["a", "b", "d"], [base[0], near, np.arange(9.0)], 3, 3)
    return write_contents({"m": 1}, state, {}.get, known), known


def readers():
    """Pairs of what is altered and how it is read, of every coder and version."""
    data, base = delta()
    found = [
        (data, lambda bad: read_contents(bad, max_bytes=limit_of(len(bad)), base=base))
    ]

    def whole(bad):
        read_contents(bad, max_bytes=limit_of(len(bad)))

    def record(bad):
        Tensor().decode(bad, max_bytes=RECORD_BYTES)

    for path in sorted(GOLDEN.rglob("*.dlopt")):
        data = path.read_bytes()
        if len(data) <= LARGEST and version_of(data) != 5:  # they want a base
            found.append((data, whole))
    for path in sorted(GOLDEN.glob("v*_tensor_*.bin")):
        found.append((path.read_bytes(), record))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    files, until = readers(), time.monotonic() + args.seconds
    out = {"ran": 0, "accepted": 0, "slowest_cpu_seconds": 0.0, "files": len(files)}
    if args.out.exists():
        known = json.loads(args.out.read_text())
        if known["files"] == len(files):
            out = known
    for i in range(out["ran"], args.count):
        data, read = files[i % len(files)]
        rng = np.random.default_rng((0, i))
        whole = data[:4] == b"\x89DLO"
        bad = broken(data, rng) if whole else mutated(data, rng)
        start = time.process_time()
        try:
            read(bad)
            out["accepted"] += 1
        except FormatError:
            pass
        except Exception as error:
            raise SystemExit(f"file {i}: {type(error).__name__}: {error}") from error
        seconds = time.process_time() - start
        if seconds > MOST_SECONDS:
            raise SystemExit(f"file {i} took {seconds:.1f} s")
        slowest = max(out["slowest_cpu_seconds"], seconds)
        out |= {"ran": i + 1, "slowest_cpu_seconds": round(slowest, 4)}
        if (i + 1) % WRITTEN_EVERY == 0:
            args.out.write_text(json.dumps(out, indent=1) + "\n")
            if time.monotonic() > until:
                break
    print(out)


if __name__ == "__main__":
    main()
