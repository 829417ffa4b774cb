"""What the source must keep, each rule as a function that yields what breaks it.

A breach is a pair: the file (its path in the package) and what was found there. The
docstring of a rule says what to do about one.
"""

import ast
from collections.abc import Iterator

from support import source

Breaches = Iterator[tuple[str, str]]

# Top to bottom. A module imports from lower lines, and from its own folder.
LEVELS = (
    {"__main__"},
    {"cli"},
    {"demo", "registered"},
    {"auto"},
    {"report"},
    {"storage", "export", "distribute", "trials", "tpu", "interop", "post_training"},
    {"online"},
    {"privacy"},
    {"adapt", "distill"},
    {"measure", "model_parallel"},
    {"int8", "surgery", "models"},
    {"transforms", "optimizers", "callbacks", "layers", "data"},
    {"select", "schedules"},
    {"graph"},
    {"runtime"},
    {"_compat", "config"},
    {"checks"},
    {"codecs"},
    {"files", "processes", "drawing", "tables", "words"},
    {"errors", "moved"},
)
LEVEL = {name: depth for depth, names in enumerate(LEVELS) for name in names}
# These, and all that they import, work where neither Keras nor TensorFlow is.
NUMPY_ONLY = (
    *("codecs", "checks", "files", "processes", "drawing", "tables"),
    *("errors", "moved", "words"),
)
# These import neither when they are imported themselves.
LATE_ONLY = ("cli", "distribute/facts.py", "distribute/plans.py")
HEAVY = ("keras", "tensorflow", "jax", "tf_keras")
PLACES = {
    "tensorflow_model_optimization": ("interop",),
    "tf_keras": ("interop",),
    "typer": ("cli",),
}
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
# The command line and the demo are users: they may take what the front shows.
USERS = ("cli", "demo")
OWN = ("self", "cls", "super()")
# Documented, though they begin with an underscore.
DOCUMENTED = {"_asdict", "_exit", "_fields", "_make", "_replace"}
# Not a layer's: jax.export gives its programs a `call`.
NO_LAYERS = {"exported(program).call", "self._exported.call"}
# Two things that are public, each in a room of its own, or named by others.
SHARED_NAMES = {
    "ConstantSparsity": "the schedule, and TFMOT's, whose name its users write",
    "Linear": "where clusters start",
    "Random": "a score, and where clusters start",
}
TREE = {"call", "operations", "layers", "inbound_nodes", "outbound_nodes"}


def private(name: str) -> bool:
    """Whether a name belongs to whoever defined it."""
    return name.startswith("_") and not name.endswith("__") and name not in DOCUMENTED


def imports_go_down() -> Breaches:
    """Move what is shared down, or the file up."""
    for path in source.FILES:
        own = source.part(path)
        if own == "__init__":
            continue  # the package's front names everything
        for name, attribute in source.imported(path):
            other = source.home(name, attribute)
            if other is None:
                continue
            part = other.split(".")[1]
            if part == "__init__" and own not in USERS:
                yield source.place(path), "keras_dlopt"
            elif part not in (own, "__init__") and LEVEL[part] <= LEVEL[own]:
                yield source.place(path), part


def no_circles() -> Breaches:
    """Take what both sides need into a third module below them."""
    for package, graph in source.levels().items():
        for ring in source.circles(graph):
            yield package, " - ".join(ring)


def foreign_packages_stay_in_their_rooms() -> Breaches:
    """Ask the room that has the package."""
    for path in source.FILES:
        for name, _ in source.imported(path):
            top = name.split(".")[0]
            if source.part(path) not in PLACES.get(top, (source.part(path),)):
                yield source.place(path), top


def numpy_only_rooms() -> Breaches:
    """Keep what needs Keras above: a decoder must run without it."""
    for path in source.FILES:
        place, part = source.place(path), source.part(path)
        if part not in NUMPY_ONLY + LATE_ONLY and place not in LATE_ONLY:
            continue
        late = part in NUMPY_ONLY
        for name in source.closure(source.module(path), late=late):
            for top, _ in source.imported(source.MODULES[name], late=late):
                if top.split(".")[0] in HEAVY:
                    yield place, f"{name} imports {top}"


def files_stay_readable() -> Breaches:
    """Split the file: one file is one thing."""
    for path in source.FILES:
        if len(path.read_text().splitlines()) > LONGEST_FILE:
            yield source.place(path), "lines"


def functions_stay_readable() -> Breaches:
    """Split the function: each piece gets a name."""
    for path in source.FILES:
        lines = path.read_text().splitlines()
        for name, node in source.functions(source.tree(path)):
            if source.code_lines(node, lines) > LONGEST_FUNCTION:
                yield source.place(path), name


def private_imports(tree: ast.AST) -> Iterator[str]:
    """Private modules and names of other packages that are imported or spelled out."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        for name in names:
            top, *rest = name.split(".")
            inner = {"src", "_api"} if top == "keras" else {"python", "__internal__"}
            if top in ("keras", "tensorflow", "tf") and inner & set(rest):
                yield name
            elif not isinstance(node, ast.Attribute) and top != source.NAME:
                yield from (name for step in rest if private(step))


def private_attributes(tree: ast.AST, own: set[str]) -> Iterator[str]:
    """Private attributes that the code does not define itself.

    Args:
        tree: of a file.
        own: private names that the files of its folder define (see `owned`).
    """
    for owner, name, _ in source.attributes(tree):
        if private(name) and name not in own:
            yield f"{owner}.{name}"


def owned(tree: ast.AST) -> set[str]:
    """Private names that a file defines: functions, classes, fields, attributes."""
    found = {
        name
        for owner, name, use in source.attributes(tree)
        if use == "assign" and owner in OWN
    }
    for node in ast.walk(tree):
        if isinstance(node, source.Function | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return {name for name in found if private(name)}


def undocumented_stays_in_compat() -> Breaches:
    """Put it into `_compat/`, with a canary in tests/test_compat.py."""
    folders: dict = {}
    for path in source.FILES:
        folders.setdefault(path.parent, set()).update(owned(source.tree(path)))
    for path in source.FILES:
        if source.part(path) == "_compat":
            continue
        tree = source.tree(path)
        for name in private_imports(tree):
            yield source.place(path), name
        for name in private_attributes(tree, folders[path.parent]):
            yield source.place(path), name


def foreign_writes(tree: ast.AST, methods: set[str]) -> Iterator[str]:
    """Methods of other objects that are replaced, and writes past `__setattr__`."""
    for owner, name, use in source.attributes(tree):
        replaced = use == "assign" and name in methods
        if owner not in OWN and (replaced or use == "set" or name == "__dict__"):
            yield f"{owner}.{name}"


def keras_methods() -> set[str]:
    """Names of the methods that objects of Keras and TensorFlow have."""
    import keras
    import tensorflow as tf

    kinds = (keras.Model, keras.Optimizer, keras.callbacks.Callback, keras.Loss)
    kinds += (keras.Metric, keras.Variable)
    kinds += (tf.distribute.ReplicaContext, tf.distribute.Strategy, tf.Variable)
    named = {(kind, name) for kind in kinds for name in dir(kind)}
    return {name for kind, name in named if callable(getattr(kind, name, None))}


def no_foreign_method_is_replaced() -> Breaches:
    """Use a subclass, a documented hook, or a function of `_compat/`."""
    methods = keras_methods()
    for path in source.FILES:
        if source.part(path) != "_compat":
            for name in foreign_writes(source.tree(path), methods):
                yield source.place(path), name


def tree_uses(tree: ast.AST) -> Iterator[str]:
    """Attributes through which a model's structure is read."""
    for owner, name, _ in source.attributes(tree):
        if name in TREE and owner not in (*OWN, "keras"):
            yield f"{owner}.{name}"


def structure_is_read_in_graph() -> Breaches:
    """Use `graph/`: walk, hooks, trace, copying, rebuilding; or extend it."""
    for path in source.FILES:
        if source.part(path) not in ("graph", "_compat"):
            for name in tree_uses(source.tree(path)):
                if name not in NO_LAYERS:
                    yield source.place(path), name


def classes_mean_one_thing() -> Breaches:
    """Give the second one a name that says what it is, and see the glossary."""
    homes: dict[str, list[str]] = {}
    for path in source.FILES:
        for node in ast.walk(source.tree(path)):
            if isinstance(node, ast.ClassDef) and not private(node.name):
                homes.setdefault(node.name, []).append(source.place(path))
    for name, places in homes.items():
        if len(places) > 1 and name not in SHARED_NAMES:
            yield from ((place, name) for place in places)


def nothing_prints_but_the_command_line() -> Breaches:
    """Return it, log it with `logging`, or warn."""
    for path in source.FILES:
        if source.part(path) == "cli":
            continue
        for node in ast.walk(source.tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                yield source.place(path), ast.unparse(node)[:40]
