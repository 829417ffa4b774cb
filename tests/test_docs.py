"""What the documentation shows is run: README, docstrings, examples."""

import doctest
import importlib
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_dlopt

ROOT = pathlib.Path(__file__).resolve().parents[1]
GUIDE = ROOT / "CONTRIBUTING.md"
PAGES = [ROOT / "README.md", GUIDE, *sorted((ROOT / "docs").glob("*.md"))]
PACKAGE = pathlib.Path(keras_dlopt.__file__).parent
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text()
]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


NUMBER = re.compile(r"-?\d+\.\d*(?:e[+-]?\d+)?|-?\d+e[+-]?\d+")


class ToThePrecisionWritten(doctest.OutputChecker):
    """Takes 0.8999999761581421 for 0.9: decimals count as far as they are shown."""

    def check_output(self, want, got, optionflags):
        if super().check_output(want, got, optionflags):
            return True
        wanted, found = NUMBER.findall(want), NUMBER.findall(got)
        if len(wanted) != len(found) or not wanted:
            return False
        for one, other in zip(wanted, found, strict=True):
            mantissa, _, exponent = one.partition("e")
            digits = len(mantissa.partition(".")[2])
            last = 10.0 ** (int(exponent or 0) - digits)
            if abs(float(one) - float(other)) > 0.5 * last * (1 + 1e-6):
                return False
        return super().check_output(
            NUMBER.sub("0.0", want), NUMBER.sub("0.0", got), optionflags
        )


def blocks(page: pathlib.Path) -> list[str]:
    """The Python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    names: dict = {"__name__": "page"}
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


@pytest.mark.parametrize(
    ("want", "got", "same"),
    [
        ("[0.9, 2.0]", "[0.8999999761581421, 2.0]", True),
        ("[0.9, 2.0]", "[0.86, 2.1]", False),
        ("0.90", "0.896", True),
        ("0.90", "0.894", False),
        ("1e-05", "1.0000001e-05", True),
        ("1e-05", "3e-05", False),
        ("1.0e-05", "1.0000001e-05", True),
        ("(0.9, 'int8')", "(0.9, 'int4')", False),
        ("[0.9]", "[0.9, 0.9]", False),
        ("3", "4", False),
    ],
)
def test_numbers_count_as_far_as_they_are_shown(want, got, same):
    checker = ToThePrecisionWritten()
    assert checker.check_output(want + "\n", got + "\n", OPTIONS) is same


def test_the_readme_has_a_block():
    assert blocks(ROOT / "README.md")


def test_paths_that_the_guide_names_are_there():
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_.]*|[a-z_]+\.py)`", GUIDE.read_text())
    assert len(named) > 40
    lost = [p for p in named if not any((top / p).exists() for top in (ROOT, PACKAGE))]
    assert lost == []


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name, tmp_path, monkeypatch):
    module = importlib.import_module(name.removesuffix(".__init__"))
    tests = doctest.DocTestFinder(exclude_empty=True).find(module, name)
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(
        ToThePrecisionWritten(), optionflags=OPTIONS, verbose=False
    )
    told: list[str] = []
    for test in tests:
        # The first lines of most examples would be these.
        for key, value in (("np", np), ("keras", keras), ("dlopt", keras_dlopt)):
            test.globs.setdefault(key, value)
        keras.utils.set_random_seed(0)
        runner.run(test, out=told.append)
    assert runner.failures == 0, "".join(told)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_run(path, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(path), "--smoke"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert done.stdout.strip(), "an example shows what it found"


def test_the_two_commands_are_one_line_each():
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^python3 -m venv .*$", text, re.M)
    assert len(commands) == 2
    assert commands[0].endswith("keras-dlopt demo")
    assert commands[1].endswith("pytest")


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    # Not copied: taken from the README, so that they cannot drift apart.
    assert "README.md" in script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
