"""The contracts that need a process of their own: two replicas, the JAX backend."""

import functools
import json
import pathlib
import subprocess
import sys

import pytest

from catalogue import all_cases

TESTS = pathlib.Path(__file__).resolve().parents[1]


@functools.cache
def _results(contract):
    done = subprocess.run(
        [sys.executable, "-m", "contracts.worker", contract],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    lines = [s for s in done.stdout.splitlines() if s.startswith("RESULTS ")]
    assert lines, f"the worker died:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(lines[-1].removeprefix("RESULTS "))


def _cases(contract):
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(
                case,
                id=case.name,
                marks=[pytest.mark.skip(reason=case.exempt[contract])]
                if contract in case.exempt
                else [],
            )
            for case in all_cases()
        ],
    )


@pytest.mark.dist
@_cases("two_replicas")
def test_two_replicas_equal_one_device(case):
    assert _results("two_replicas")[case.name] == ""


@pytest.mark.jax
@_cases("jax")
def test_jax_backend(case):
    pytest.importorskip("jax")
    assert _results("jax")[case.name] == ""
