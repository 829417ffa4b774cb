"""What the learner must reach on MNIST and Fashion-MNIST, by the benchmark's script.

    pytest -m slow tests/online/test_bars.py --dist load

`ONLINE_RESULTS` names a file in which the rows stay, and from which rows are taken.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "online.py"
SEEDS = range(5)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(
        "KERAS_DLOPT_DATA" not in os.environ, reason="needs MNIST in KERAS_DLOPT_DATA"
    ),
]


def row(name, tmp_path):
    out = pathlib.Path(os.environ.get("ONLINE_RESULTS", tmp_path / "rows.json"))
    part = name.split("/")[0]
    subprocess.run(
        [sys.executable, str(SCRIPT), part, "--match", name, "--out", str(out)],
        check=True,
        timeout=2900,
        capture_output=True,
    )
    return json.loads(out.read_text())[name]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "bar"), [("mnist", 0.90), ("fashion_mnist", 0.78)])
def test_five_tasks_with_500_kept_images(name, bar, seed, tmp_path):
    found = row(f"split/{name}/{seed}", tmp_path)
    assert found["accuracy"] >= bar
    assert found["kept"] == 500


@pytest.mark.parametrize("seed", SEEDS)
def test_plain_sgds_level_after_a_drift_in_half_its_samples(seed, tmp_path):
    plain = row(f"drift/labels/sgd/{seed}", tmp_path)
    found = row(f"drift/labels/reacting/{seed}", tmp_path)
    means = [float(mean) for mean in found["curve"].split()]
    level = plain["before"] - 0.01
    reached = next(500 + 100 * i for i, mean in enumerate(means) if mean >= level)
    assert reached <= plain["back"] / 2
