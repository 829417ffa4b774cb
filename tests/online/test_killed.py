"""Killed at random, in batches and in the middle of writing: the end is bit-equal."""

import ast
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).with_name("killed.py")


def run(*arguments):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check(tmp_path, deaths):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    run(whole, "killing", 0, 0)
    (last,) = run(broken, "killing", 7, deaths).splitlines()[-1:]
    ends = ast.literal_eval(last)
    assert ends == [9] * deaths + [0]
    one, other = (dict(np.load(f / "end.npz")) for f in (whole, broken))
    assert sorted(one) == sorted(other)
    for name, array in one.items():
        assert np.array_equal(array, other[name]), name
    assert len(one) > 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_ten_times(tmp_path):
    check(tmp_path, 10)
