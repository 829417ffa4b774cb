"""The callbacks' own tests once more, on the JAX backend, in a process of its own."""

import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
# One of each kind: rule in fit, resuming, undo, gradients, schedule, momentum, restore.
CHOSEN = (
    "rates_in_fit or resumed_equals or nan_batches or are_the_twins or "
    "whole_schedule or restored_to_the_bit"
)


@pytest.mark.slow
@pytest.mark.jax
def test_callbacks_on_jax():
    pytest.importorskip("jax")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", str(HERE), "-k", CHOSEN],
        cwd=HERE.parents[1],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout
