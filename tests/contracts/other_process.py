"""Starts `contracts.worker` and hands out its results, a test each."""

import functools
import json
import pathlib
import subprocess
import sys

import pytest

from catalogue import cases_of, modules

TESTS = pathlib.Path(__file__).resolve().parents[1]
SECONDS = 880


@functools.cache
def _results(contract: str, module: str) -> tuple[dict[str, str], str]:
    """Runs a module's cases once; the first test of a module waits for all of them."""
    done = subprocess.run(
        [sys.executable, "-m", "contracts.worker", contract, module],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    lines = [s for s in done.stdout.splitlines() if s.startswith("RESULT ")]
    results = dict(json.loads(s.removeprefix("RESULT ")) for s in lines)
    return results, f"the worker died:\n{done.stderr[-4000:]}"


def check(contract: str, module: str, name: str) -> None:
    """Asserts that one case passed."""
    results, died = _results(contract, module)
    assert results.get(name, died) == ""


def cases(contract: str) -> pytest.MarkDecorator:
    """All cases under a contract, as `module` and `name`."""
    params = [
        pytest.param(
            module,
            case.name,
            id=f"{module}-{case.name}",
            marks=[pytest.mark.skip(reason=case.exempt[contract])]
            if contract in case.exempt
            else [],
        )
        for module in modules()
        for case in cases_of(module)
    ]
    return pytest.mark.parametrize(("module", "name"), params)
