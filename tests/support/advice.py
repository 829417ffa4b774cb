"""What errors and warnings advise, read from the source, and the tests that follow it.

A text gives advice where one of its sentences begins with an imperative. A test that
follows it is marked with the file and a piece of the text:

    @pytest.mark.advice("data/split.py", "Ask for dtype='float32'.")
"""

import ast
import contextlib
import pathlib
import re
from collections.abc import Iterator

import pytest

from support import source

TESTS = pathlib.Path(__file__).parents[1]
# Imperatives that begin a sentence or clause of a text.
_VERBS = """
Add Allow Annotate Ask Build Call Cast Chain Change Check Choose Compare Compile Convert
Create Declare Decorate Define Delete Divide Download Draw End Export Factorize Finalize
Fit Freeze Give Hand Import Install Keep Leave Let Load Lower Make Measure Move Name
Open Pass Prune Put Quantize Raise Read Register Remove Rename Repeat Replace Reshape
Restore Resume Return Run Save Select Set Split Start Strip Take Train Try Unset
Update Use
Wait Wrap Write
"""
VERBS = frozenset(_VERBS.split())
# Words of figures and of the command line's help, which stand in no error.
_ELSEWHERE = ("report/pages.py", "cli/plan.py", "cli/demo.py")


def found() -> Iterator[tuple[str, str]]:
    """File and text of each piece of advice; `{}` where a value is put in."""
    for path in source.FILES:
        if source.place(path) in _ELSEWHERE:
            continue
        tree = source.tree(path)
        skipped = _not_texts(tree)
        for node in ast.walk(tree):
            if node not in skipped and isinstance(node, ast.Constant | ast.JoinedStr):
                text = template(node)
                if "." in text and _advises(text):
                    yield source.place(path), text


def _advises(text: str) -> bool:
    for clause in re.split(r"(?<=[.;:,])\s+", text):
        first, *rest = clause.split(" ")
        if rest and first in VERBS:
            return True
    return False


def _not_texts(tree: ast.Module) -> set[ast.AST]:
    """Docstrings, help of the command line, and the pieces of formatted texts."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            skipped.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            skipped.update(n for n in ast.walk(node) if n is not node)
        elif isinstance(node, ast.keyword) and node.arg == "help":
            skipped.update(ast.walk(node.value))
    return skipped


def template(node: ast.AST) -> str:
    """A text of the source with `{}` for what is formatted; empty for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    assert isinstance(node, ast.JoinedStr)
    return "".join(
        v.value if isinstance(v, ast.Constant) else "{}" for v in node.values
    )


_MARKS = ("pytest.mark.advice", "advice")


def followed() -> Iterator[tuple[str, str]]:
    """File and piece of text of each test's mark."""
    for path in sorted(TESTS.rglob("*.py")):
        text = path.read_text()
        if "mark.advice" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in _MARKS:
                place, piece = (ast.literal_eval(a) for a in node.args)
                yield place, piece


class Told:
    """What a marked test must hear before it follows the advice.

    Args:
        marks: the pieces of text, all of which must be heard by the end of the test.
    """

    def __init__(self, marks: list[str]):
        assert marks, "mark the test with the advice that it follows"
        self.marks, self.heard = marks, set()

    @contextlib.contextmanager
    def __call__(self, *kinds):
        """The block must fail, or warn, with one of the texts."""
        from keras_dlopt.errors import DloptError

        try:
            yield
        except (DloptError, UserWarning, *kinds) as error:
            said = {text for text in self.marks if _pattern(text).search(str(error))}
            if not said:
                pytest.fail(f"none of {self.marks} is said in: {error}")
            self.heard |= said
        else:
            pytest.fail(f"nothing was refused; expected one of {self.marks}")

    def check(self):
        """Fails for a text that was never heard."""
        assert self.heard == set(self.marks), f"unheard: {set(self.marks) - self.heard}"


def _pattern(text: str) -> re.Pattern:
    return re.compile(re.escape(text).replace(r"\{\}", ".*"), re.DOTALL)
