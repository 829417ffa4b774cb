"""What is said to run in int8 is what was measured to."""

import importlib.util
import json
import pathlib
import warnings

import keras
import pytest

from keras_dlopt.graph.trace import trace
from keras_dlopt.int8.placement import place
from keras_dlopt.int8.preparing import prepared

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
ROWS = json.loads((BENCHMARKS / "results" / "int8_ops.json").read_text())["rows"]


@pytest.fixture(scope="module")
def networks():
    """Name -> shape and body of each network that was measured."""
    file = BENCHMARKS / "int8_ops.py"
    spec = importlib.util.spec_from_file_location("int8_ops", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {name: (s, body) for g in module.GROUPS for name, s, body in g()}
    return module, found


def test_all_networks_are_measured(networks):
    assert [row["name"] for row in ROWS] == list(networks[1])
    assert all("error" not in row for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_the_table_of_kinds_is_what_was_measured(networks, row):
    module, found = networks
    keras.utils.clear_session()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the body, such as a softmax of one number
        model, x = module.network(row["name"], *found[row["name"]])
    problems = place(trace(prepared(model, fold=True), x[:1])).problems
    assert bool(problems) == bool(row["float"]), (problems, row["float"])
    assert bool(row["warned"]) == bool(row["float"])
