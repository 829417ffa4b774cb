"""Two replicas learn what one device learns."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("on_two.py")


@pytest.mark.dist
def test_two_replicas_equal_one_device():
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    far = json.loads(done.stdout.splitlines()[-1])
    assert len(far) > 8  # weights, state of the transforms, errors, predictions
    # Sums in another order, over 20 steps of Adam.
    assert max(far) < 2e-5, far
