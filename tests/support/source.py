"""The package as its source says it: files, imports, functions, attributes.

Read with `ast` and never imported, so that imports inside functions and under
TYPE_CHECKING count as much as those at the top.
"""

import ast
import functools
import importlib.util
import pathlib
from collections.abc import Iterator

NAME = "keras_dlopt"
PACKAGE = pathlib.Path(importlib.util.find_spec(NAME).origin).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def place(path: pathlib.Path) -> str:
    """A file's path inside the package."""
    return path.relative_to(PACKAGE).as_posix()


def part(path: pathlib.Path) -> str:
    """The folder or file at the top of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def tree(path: pathlib.Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text())


def module(path: pathlib.Path) -> str:
    """A file's dotted name; a package's own file ends in `__init__`."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


MODULES = {module(path): path for path in FILES}


def imported(
    path: pathlib.Path, *, late: bool = True
) -> Iterator[tuple[str, str | None]]:
    """What a file imports: (module, name or None).

    Args:
        path: the file.
        late: whether imports count wherever they stand, not only those at the top.
    """
    for node in ast.walk(tree(path)) if late else tree(path).body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place(path)}: relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            yield from ((n.value, None) for n in node.args[:1] if _constant(n))


@functools.cache
def _names(home: str) -> dict[str, tuple[str, str | None]]:
    """Where a package's own file takes each of its names from."""
    found = {}
    for node in tree(MODULES[home]).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = (node.module or "", alias.name)
    return found


def home(name: str, attribute: str | None) -> str | None:
    """The module of this package that an import reaches; None for a foreign one.

    A name that a package's `__init__` only hands on is followed to the module that
    defines it: the front of a package is a list of names and no place of its own.
    """
    if name != NAME and not name.startswith(f"{NAME}."):
        return None
    if attribute is not None:
        for inside in (f"{name}.{attribute}", f"{name}.{attribute}.__init__"):
            if inside in MODULES:
                return inside
    if name in MODULES:
        return name
    front = f"{name}.__init__"
    if front not in MODULES:
        return None
    if attribute in _names(front):
        return home(*_names(front)[attribute]) or front
    return front


@functools.cache
def reaches(name: str, *, late: bool = True) -> frozenset[str]:
    """The modules of this package that a module imports itself."""
    path = MODULES[name]
    found = {home(*what) for what in imported(path, late=late)} - {None, name}
    if path.name == "__init__.py":
        # A front hands on the names of its own folder.
        inside = name.removesuffix("__init__")
        found = {other for other in found if not other.startswith(inside)}
    return frozenset(found)


def closure(name: str, *, late: bool = True) -> set[str]:
    """A module and all modules of this package that it needs, near and far."""
    found: set[str] = set()
    todo = [name]
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += reaches(one, late=late)
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The sets of nodes that reach each other (Tarjan's components above one node)."""
    reach: dict[str, set[str]] = {}
    for start in edges:
        seen: set[str] = set()
        todo = list(edges[start])
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += edges.get(node, ())
        reach[start] = seen
    rings = {
        tuple(sorted({n for n in reach[node] if node in reach.get(n, ())}))
        for node in edges
        if node in reach[node]
    }
    return [list(ring) for ring in sorted(rings)]


def levels() -> dict[str, dict[str, set[str]]]:
    """For each package, who imports whom among its files and folders.

    A circle between two modules anywhere is a circle among the children of the
    smallest package that holds both, so these graphs together show every circle.
    """
    graphs: dict[str, dict[str, set[str]]] = {}
    for name in MODULES:
        steps = name.split(".")
        for depth in range(1, len(steps)):
            graph = graphs.setdefault(".".join(steps[:depth]), {})
            graph.setdefault(steps[depth], set())
        for other in reaches(name):
            ends = other.split(".")
            depth = next(i for i, step in enumerate(steps) if ends[i] != step)
            graph = graphs[".".join(steps[:depth])]
            graph[steps[depth]].add(ends[depth])
    return graphs


READS = {"getattr": "read", "hasattr": "read"}
WRITES = ("setattr", "delattr", "object.__setattr__", "object.__delattr__")
BY_NAME = READS | dict.fromkeys(WRITES, "set")


def _constant(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def attributes(node: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Every attribute that is used: (of what, its name, how).

    How is `"read"`, `"assign"` for `x.name = ...` and `del x.name`, or `"set"` for
    `setattr` and its kin. A name that is computed there shows as `*`.
    """
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute):
            use = "read" if isinstance(inner.ctx, ast.Load) else "assign"
            yield ast.unparse(inner.value), inner.attr, use
        elif isinstance(inner, ast.Call) and len(inner.args) > 1:
            owner, name = inner.args[:2]
            if use := BY_NAME.get(ast.unparse(inner.func)):
                yield ast.unparse(owner), name.value if _constant(name) else "*", use


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Every function and method with its qualified name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            name = f"{prefix}{child.name}"
            if isinstance(child, Function):
                yield name, child
            yield from functions(child, f"{name}.")
        else:
            yield from functions(child, prefix)


def code_lines(node: Function, lines: list[str]) -> int:
    """A function's lines without its docstrings, comments and blank ones."""
    told: set[int] = set()
    for inner in ast.walk(node):
        if isinstance(inner, Function | ast.ClassDef) and ast.get_docstring(inner):
            told |= set(range(inner.body[0].lineno, inner.body[0].end_lineno + 1))
    return sum(
        bool(text := lines[number - 1].strip()) and not text.startswith("#")
        for number in range(node.lineno, node.end_lineno + 1)
        if number not in told
    )
