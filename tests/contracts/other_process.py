"""Starts `contracts.worker` and hands out its results, a test each."""

import functools
import json
import pathlib
import subprocess
import sys

import pytest

from catalogue import all_cases

TESTS = pathlib.Path(__file__).resolve().parents[1]
SECONDS = 1200


@functools.cache
def _results(contract: str) -> tuple[dict[str, str], str]:
    """Runs all cases once; the first test waits for all of them."""
    done = subprocess.run(
        [sys.executable, "-m", "contracts.worker", contract],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    lines = [s for s in done.stdout.splitlines() if s.startswith("RESULT ")]
    results = dict(json.loads(s.removeprefix("RESULT ")) for s in lines)
    return results, f"the worker died:\n{done.stderr[-4000:]}"


def check(contract: str, name: str) -> None:
    """Asserts that one case passed."""
    results, died = _results(contract)
    assert results.get(name, died) == ""


def cases(contract: str) -> pytest.MarkDecorator:
    """All cases under a contract, by name."""
    params = [
        pytest.param(
            case.name,
            id=case.name,
            marks=[pytest.mark.skip(reason=case.exempt[contract])]
            if contract in case.exempt
            else [],
        )
        for case in all_cases()
    ]
    return pytest.mark.parametrize("name", params)
