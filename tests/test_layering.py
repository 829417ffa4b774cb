"""Imports go down the levels only, and heavy or foreign packages stay where they are.

Read from the source with `ast`, so that imports inside functions count too.
"""

import ast
import collections
import pathlib

import keras_dlopt

PACKAGE = pathlib.Path(keras_dlopt.__file__).parent

# Top to bottom. A module imports from lower lines, and from its own folder.
LEVELS = (
    {"cli"},
    {"demo"},
    {"auto", "report"},
    {"storage", "export", "distribute", "trials", "tpu", "model_parallel"}
    | {"interop", "post_training", "measure"},
    {"int8", "surgery", "models"},
    {"transforms", "optimizers", "callbacks", "layers", "data"},
    {"select", "schedules"},
    {"graph", "_compat", "config"},
    {"codecs", "files", "processes", "errors", "moved"},
)
LEVEL = {name: depth for depth, names in enumerate(LEVELS) for name in names}
# Within one level a few modules lean on each other, one way.
SAME_LEVEL = {
    ("graph", "_compat"),
    ("codecs", "errors"),
    ("files", "errors"),
    ("tpu", "model_parallel"),
}
# To be removed: the folder's files still lean on what stands above them.
UPWARD = {("graph", "transforms"), ("graph", "int8")}

FILES = sorted(PACKAGE.rglob("*.py"))


def _id(path):
    return path.relative_to(PACKAGE).as_posix()


def _imports(path):
    """Every module that a file names in an import, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_id(path)}: relative import"
            yield node.module
            # `from keras_dlopt import data` imports keras_dlopt.data
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _own_parts(path):
    """The parts of this package that a file imports."""
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "keras_dlopt" and len(parts) > 1 and parts[1] in LEVEL:
            yield parts[1]


def _part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_has_a_level():
    parts = {_part(p) for p in FILES}
    assert parts - {"__init__"} <= set(LEVEL), "give the new part a level here"


def test_imports_go_down():
    wrong = []
    for path in FILES:
        own = _part(path)
        if own == "__init__":
            continue  # the package's front names everything
        wrong += [
            f"{_id(path)} imports {part}, which is not below {own}"
            for part in _own_parts(path)
            if part != own
            and (own, part) not in SAME_LEVEL | UPWARD
            and LEVEL[part] <= LEVEL[own]
        ]
    assert not wrong


def test_foreign_packages_stay_where_they_belong():
    places = {
        "tensorflow_model_optimization": {"interop"},
        "tf_keras": {"interop"},
        "typer": {"cli"},
    }
    wrong = []
    for path in FILES:
        for name in _imports(path):
            top = name.split(".")[0]
            if _part(path) not in places.get(top, {_part(path)}):
                wrong.append(f"{_id(path)} imports {name}")
            numpy_only = _part(path) in ("codecs", "errors")
            if numpy_only and top in ("keras", "tensorflow", "jax"):
                wrong.append(f"{_id(path)} imports {name}, and works without")
    assert not wrong


def test_private_keras_is_touched_in_one_file():
    wrong = []
    for path in FILES:
        if _part(path) == "_compat":
            continue
        for name in _imports(path):
            top, *rest = name.split(".")
            private = [p for p in rest if p == "src" or p.startswith("_")]
            if top == "keras" and private and rest != ["__version__"]:
                wrong.append(f"{_id(path)} imports {name}: put it into _compat")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("src", "_api"):
                root = node.value
                if isinstance(root, ast.Name) and root.id == "keras":
                    wrong.append(f"{_id(path)}:{node.lineno} uses keras.{node.attr}")
    assert not wrong


def test_nothing_prints_but_the_command_line():
    wrong = [
        f"{_id(path)}:{node.lineno}"
        for path in FILES
        if _part(path) != "cli"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not wrong


def test_files_stay_readable():
    long = [_id(p) for p in FILES if len(p.read_text().splitlines()) > 400]
    assert not long, "split them"


def test_registered_names_are_unique():
    """Keras lets the later class of a name replace the earlier one without a word."""
    homes = collections.defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                text = ast.unparse(mark)
                if "register_keras_serializable(" in text:
                    given = [k.value for k in mark.keywords if k.arg == "name"]
                    name = ast.literal_eval(given[0]) if given else node.name
                    homes[name].append(_id(path))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}
    assert len(homes) > 100
