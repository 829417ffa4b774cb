"""What needs several devices runs in one other process, a test per check."""

import ast
import functools
import pathlib

import pytest

SCRIPT = pathlib.Path(__file__).with_name("on_devices.py")
CHECKS = [
    node.name
    for node in ast.parse(SCRIPT.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]

pytestmark = [pytest.mark.dist, pytest.mark.timeout(800)]


@pytest.fixture(scope="module")
def found():
    @functools.cache
    def once(read):
        return dict(read(SCRIPT, seconds=780))

    return once


@pytest.mark.parametrize("name", CHECKS)
def test_on_devices(found, results, name):
    assert found(results).get(name, "it died before") == ""
