"""The notebooks of the documentation run, from the first cell to the last."""

import json
import pathlib

import keras
import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FAST = "stream.ipynb"


def _cells(path, kind):
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, marks=() if p.name == FAST else pytest.mark.slow)
        for p in NOTEBOOKS
    ],
    ids=lambda p: p.stem,
)
def test_notebooks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    names: dict = {"__name__": path.stem}
    for number, cell in enumerate(_cells(path, "code")):
        code = compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec")
        exec(code, names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_kept_without_outputs_and_are_linked(path):
    made = json.loads(path.read_text())
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])
    for cell in _cells(path, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    assert f"(notebooks/{path.name})" in (FOLDER.parent / "guides.md").read_text()
    for cell in _cells(path, "markdown"):
        for page in "".join(cell["source"]).split("](../")[1:]:
            assert (FOLDER.parent / page.split(")")[0]).exists()
