"""Seeds faults into copies of the package and counts the tests that notice.

    python benchmarks/mutants.py                     # those without a result yet
    python benchmarks/mutants.py NAME ... --again    # these, once more

Each fault of `mutant_list.py` is applied in a copy of the tree, never in place, and the
tests of its part run there. At the end the tests that noticed run without any fault:
one that fails anyway proves nothing. The result is written after every fault, so that
the script may be stopped and started again; a fault runs again when its text, its tests
or the file that it is seeded in have changed.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET

from mutant_list import MUTANTS, Mutant

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
PARTS = ("keras_dlopt", "tests", "benchmarks", "examples", "docs")
FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")
ENOUGH = 3  # failing tests are counted up to here: the question is 0, 1, or more
SECONDS = 900


def copy_tree(folder):
    """The parts of the tree that tests read."""
    for name in PARTS:
        leave = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)


def home(mutant, package):
    """The file that holds a mutant's text, which must be there once."""
    found = [
        path
        for path in sorted(package.rglob("*.py"))
        for _ in range(path.read_text().count(mutant.text))
    ]
    if len(found) != 1:
        raise SystemExit(f"{mutant.name}: its text is found {len(found)} times")
    return found[0]


def failing(folder, tests, *, enough):
    """Ids of failing tests, at most `enough`, and how many ran."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0"]
    command += ["-q", "-o", "junit_family=xunit1", f"--junitxml={report}"]
    command += [f"--maxfail={enough}", *tests]
    try:
        subprocess.run(
            command,
            cwd=folder,
            env=environment,
            timeout=SECONDS,
            capture_output=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [f"timed out after {SECONDS} s"], 0
    cases = list(ET.parse(report).getroot().iter("testcase"))
    bad = [c for c in cases if c.find("failure") is not None]
    bad += [c for c in cases if c.find("error") is not None]
    names = [f"{c.get('file')}::{c.get('name')}" for c in bad]
    return list(dict.fromkeys(names)), len(cases)


def key(mutant, path):
    """What a result belongs to: the fault, its tests and the file it is seeded in."""
    parts = [*dataclass_values(mutant), path.read_text()]
    for name in mutant.tests:
        place = ROOT / name.split("::")[0]
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
        parts += [file.read_text() for file in files]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def dataclass_values(mutant: Mutant):
    """A mutant as plain values."""
    return [mutant.name, mutant.text, mutant.instead, list(mutant.tests)]


def seed(mutant):
    """Runs a mutant's tests on a copy of the tree that has its fault."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = pathlib.Path(name)
        copy_tree(folder)
        path = home(mutant, folder / "keras_dlopt")
        path.write_text(path.read_text().replace(mutant.text, mutant.instead))
        found, ran = failing(folder, mutant.tests, enough=ENOUGH)
    return {
        "file": path.relative_to(folder).as_posix(),
        "tests": list(mutant.tests),
        "ran": ran,
        "failed": found,
        "sound": False,
    }


def clear(rows):
    """Takes tests that fail without any fault out of the results."""
    rows = [row for row in rows if not row["sound"]]
    tests = list(dict.fromkeys(t for row in rows for t in row["failed"] if "::" in t))
    if not tests:
        return
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = pathlib.Path(name)
        copy_tree(folder)
        bad, ran = failing(folder, tests, enough=len(tests))
    if ran < len(tests):
        raise SystemExit(f"of {len(tests)} tests {ran} ran without a fault: {bad}")
    for row in rows:
        row["failed"] = [test for test in row["failed"] if test not in bad]
        row["sound"] = True


def write(results):
    """Stores the results whole, with the figures that are quoted."""
    rows = [results[name] for name in sorted(results)]
    counts = [len(row["failed"]) for row in rows]
    figures = {
        "seeded": len(rows),
        "killed": sum(c > 0 for c in counts),
        "killed by two or more tests": sum(c > 1 for c in counts),
        "survived": [n for n in sorted(results) if not results[n]["failed"]],
        "killed by one test": [n for n in results if len(results[n]["failed"]) == 1],
    }
    data = {
        "figures": figures,
        "counted up to": ENOUGH,
        "python": platform.python_version(),
        "mutants": {name: results[name] for name in sorted(results)},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    temporary.replace(RESULTS)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="mutants to run; all if none")
    parser.add_argument("--again", action="store_true", help="also those with results")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    unknown = set(options.names) - {m.name for m in MUTANTS}
    if unknown:
        raise SystemExit(f"unknown mutants: {sorted(unknown)}")
    known = json.loads(RESULTS.read_text())["mutants"] if RESULTS.exists() else {}
    keys = {m.name: key(m, home(m, ROOT / "keras_dlopt")) for m in MUTANTS}
    results = {n: r for n, r in known.items() if keys.get(n) == r["key"]}
    todo = [
        m
        for m in MUTANTS
        if (not options.names or m.name in options.names)
        and (options.again or m.name not in results)
    ]
    with concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
        jobs = {pool.submit(seed, m): m for m in todo}
        for job in concurrent.futures.as_completed(jobs):
            mutant = jobs[job]
            results[mutant.name] = job.result() | {"key": keys[mutant.name]}
            row = results[mutant.name]
            print(f"{len(row['failed'])} of {row['ran']}  {mutant.name}", flush=True)
            write(results)
    clear(results.values())
    print(json.dumps(write(results), indent=1))


if __name__ == "__main__":
    main()
