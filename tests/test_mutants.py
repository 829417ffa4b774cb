"""The faults that `benchmarks/mutants.py` seeds still fit the source they are for."""

import ast
import collections
import importlib.util
import pathlib

import pytest

from support import source

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _list():
    place = ROOT / "benchmarks" / "mutant_list.py"
    spec = importlib.util.spec_from_file_location("mutant_list", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MUTANTS


MUTANTS = _list()
TEXTS = {path: path.read_text() for path in source.FILES}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_mutant_applies(mutant):
    places = [p for p, text in TEXTS.items() for _ in range(text.count(mutant.text))]
    assert len(places) == 1, "its text must be in the package exactly once"
    changed = TEXTS[places[0]].replace(mutant.text, mutant.instead)
    assert ast.dump(ast.parse(changed)) != ast.dump(source.tree(places[0]))
    for tests in mutant.tests:
        assert (ROOT / tests.split("::")[0]).exists(), tests


def test_the_mutants_are_spread_over_the_package():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 40
    where = collections.Counter(
        source.part(path) for m in MUTANTS for path in TEXTS if m.text in TEXTS[path]
    )
    packages = {source.part(p) for p in source.FILES if p.name == "__init__.py"}
    # Without logic of its own, or tested by what stands on it.
    rest = {"__init__", "_compat", "demo", "runtime"}
    assert packages - set(where) <= rest
