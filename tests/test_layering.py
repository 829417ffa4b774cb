"""The rules of CONTRIBUTING that can be read from the source are kept.

The rules are in `support/rules.py`; what the tree does not keep yet is in
`support/known.py`, a table that only shrinks.
"""

import ast
import collections

import pytest

from support import rules, source
from support.known import KNOWN

RULES = {
    rule.__name__: rule
    for rule in (
        rules.imports_go_down,
        rules.no_circles,
        rules.foreign_packages_stay_in_their_rooms,
        rules.numpy_only_rooms,
        rules.files_stay_readable,
        rules.functions_stay_readable,
        rules.undocumented_stays_in_compat,
        rules.no_foreign_method_is_replaced,
        rules.structure_is_read_in_graph,
        rules.classes_mean_one_thing,
        rules.nothing_prints_but_the_command_line,
    )
}


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    found = set(RULES[name]())
    known = KNOWN.get(name, set())
    assert sorted(found - known) == [], RULES[name].__doc__
    assert sorted(known - found) == [], "gone: take it out of support/known.py"


def test_known_breaches_belong_to_a_rule():
    assert set(KNOWN) <= set(RULES)


def test_every_part_has_a_level():
    parts = {source.part(path) for path in source.FILES} - {"__init__"}
    assert sorted(parts - set(rules.LEVEL)) == [], "give it a level in support/rules.py"


def test_registered_names_are_unique():
    """Keras lets the later class of a name replace the earlier one without a word."""
    homes = collections.defaultdict(list)
    for path in source.FILES:
        for node in ast.walk(source.tree(path)):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                text = ast.unparse(mark)
                if "register_keras_serializable(" in text:
                    given = [k.value for k in mark.keywords if k.arg == "name"]
                    name = ast.literal_eval(given[0]) if given else node.name
                    homes[name].append(source.place(path))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}
    assert len(homes) > 100


# A check that cannot fail is none: each reading finds what it is there for.


def _found(reading, text, *arguments):
    return sorted(reading(ast.parse(text), *arguments))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import keras.src.backend", ["keras.src.backend"]),
        ("from keras.src import tree", ["keras.src.tree"]),
        ("def f():\n from tensorflow.python import ops", ["tensorflow.python.ops"]),
        ("keras.src.x()", ["keras.src", "keras.src.x"]),
        ("from jax._src import core", ["jax._src.core"]),
        ("from keras import layers\nkeras.layers.Dense", []),
        ("from keras_dlopt import _compat", []),
    ],
)
def test_private_imports_are_seen(text, found):
    assert _found(rules.private_imports, text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("layer._flatten_layers()", ["layer._flatten_layers"]),
        ("self._tracker", ["self._tracker"]),
        ("getattr(model, '_nested', None)", ["model._nested"]),
        ("object.__setattr__(model, '_make', 1)", []),
        ("object.__setattr__(model, '_jit', 1)", ["model._jit"]),
        ("other._own + x.__class__ + pair._replace(a=1)", []),
    ],
)
def test_private_attributes_are_seen(text, found):
    assert _found(rules.private_attributes, text, {"_own"}) == found


def test_own_private_names_are_told_from_foreign_ones():
    text = "class A:\n _a = 1\n def _b(self): self._c, other._d = 1, 2\n\n_e: int = 3"
    assert rules.owned(ast.parse(text)) == {"_a", "_b", "_c", "_e"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("layer.call = hooked", ["layer.call"]),
        ("del layer.call", ["layer.call"]),
        ("self.call = hooked", []),
        ("optimizer.learning_rate = 1.0", []),
        ("model.__dict__['x'] = 1", ["model.__dict__"]),
        ("object.__setattr__(model, 'train_step', f)", ["model.train_step"]),
        ("setattr(home, name, f)", ["home.*"]),
        ("object.__setattr__(self, 'of', 1)", []),
    ],
)
def test_replaced_methods_are_seen(text, found):
    assert _found(rules.foreign_writes, text, {"call"}) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[l for l in model.layers]", ["model.layers"]),
        ("hasattr(model, 'operations')", ["model.operations"]),
        ("layer.call(x)", ["layer.call"]),
        ("self.model.layers", ["self.model.layers"]),
        ("keras.layers.Dense(1)\nsuper().call(x)\nself.call(x)", []),
    ],
)
def test_structure_that_is_read_is_seen(text, found):
    assert _found(rules.tree_uses, text) == found


def test_circles_are_seen():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"d"}}
    assert source.circles(graph) == [["a", "b", "c"]]
    assert source.circles({"a": {"b"}, "b": set()}) == []


def test_a_name_from_a_front_counts_as_its_home():
    home = source.home("keras_dlopt.transforms", "Prune")
    assert home == "keras_dlopt.transforms.prune.transform"
    assert source.home("keras_dlopt", "transforms") == "keras_dlopt.transforms.__init__"
    assert source.home("keras", "layers") is None


def test_code_lines_leave_out_what_is_no_code():
    text = (
        'def f():\n    """Doc.\n\n    More.\n    """\n    # why\n\n    return (\n  1)\n'
    )
    (node,) = ast.parse(text).body
    assert source.code_lines(node, text.splitlines()) == 3
