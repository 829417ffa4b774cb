"""Starts Python scripts with a timeout and one thread, and reads their results."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
TESTS = HERE.parent


def _start(script, *arguments, seconds=240, environment=None):
    before = os.environ.get("PYTHONPATH")  # of a source tree that is not installed
    path = str(TESTS) if not before else f"{TESTS}{os.pathsep}{before}"
    return subprocess.run(
        [sys.executable, *map(str, [script, *arguments])],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
    )


@pytest.fixture(scope="session")
def start():
    """`start(script, *arguments)` -> the ended process; fails on a hang."""
    return _start


@pytest.fixture(scope="session")
def results():
    """`results(script, *arguments)` -> what it printed after `RESULT `, as JSON."""

    def read(script, *arguments, **options):
        done = _start(script, *arguments, **options)
        lines = [s for s in done.stdout.splitlines() if s.startswith("RESULT ")]
        assert lines, f"it died: {done.stderr[-4000:]}"
        return [json.loads(s.removeprefix("RESULT ")) for s in lines]

    return read
