"""The tables of the pages that are made from results are up to date."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_results(tables, capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_table_is_seen_and_renewed(tables, tmp_path, monkeypatch, capsys):
    page = tmp_path / "a.md"
    page.write_text("x\n<!-- one: begin -->\nold\n<!-- one: end -->\ny\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "TABLES", {"one": ("a.md", lambda: "| new |")})
    assert tables.main(["--check"]) == 1
    assert "old" in page.read_text()
    assert tables.main([]) == 0
    assert page.read_text() == "x\n<!-- one: begin -->\n| new |\n<!-- one: end -->\ny\n"
    assert tables.main(["--check"]) == 0
    assert capsys.readouterr().out.count("a.md: one") == 2


def test_a_page_without_marks_is_named(tables):
    with pytest.raises(SystemExit, match="no <!-- one: begin -->"):
        tables.renewed("text", "one", "made")
