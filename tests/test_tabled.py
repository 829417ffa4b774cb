"""What `print` and a notebook show of results."""

import dataclasses
import html.parser

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt import at, everything, inside, matching, named, rank, report
from keras_dlopt.auto import Compressed, Trial
from keras_dlopt.tables import Table, Tabled, to_fragment


class _Cells(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.cells = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1] in ("th", "td") and self.cells:
            self.cells[-1] += data.strip()


def test_a_fragment_has_the_cells_and_no_markup_of_the_users():
    table = Table("t", ("", "<b>"), (("x & y", "1"), ("<script>", "2")), note="a < b")
    found = _Cells(to_fragment(table))
    assert found.cells == ["", "<b>", "x & y", "1", "<script>", "2"]
    assert found.tags.count("tr") == 3
    assert not {"script", "b"} & set(found.tags)


def test_a_class_without_tables_says_so():
    with pytest.raises(NotImplementedError):
        Tabled().tables()


@pytest.mark.parametrize(
    "selector",
    [
        named("kernel"),
        named("kernel", "bias") & rank(2, 4),
        ~named("bias"),
        (named("a") | matching(r"dense_\d")) & ~(at("x/kernel") & rank(1)),
        inside("Conv2D") | everything(),
    ],
    ids=str,
)
def test_selectors_print_as_they_are_written(selector):
    names = {f.__name__: f for f in (named, rank, matching, at, inside)}
    assert eval(str(selector), names) == selector


def test_a_selector_of_ones_own_prints_as_its_arguments():
    class Every(dlopt.select.Selector):
        pass

    assert str(Every()) == "Every()"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,))])
    for _ in range(12):
        model.add(keras.layers.Dense(4))
    recipe = dlopt.Recipe(
        [(named("kernel"), dlopt.Prune(0.5)), (named("bias"), dlopt.Cluster(2))]
    )
    path = tmp_path_factory.mktemp("a") / "model.dlopt"
    ledger = dlopt.save_compressed(model, path)
    x, y = np.eye(4, dtype="float32"), np.arange(4)
    compared = report.compare(model, model, (x, y))
    trials = tuple(
        Trial(method=method, goal=0, bytes=size, accuracy=right, loss=0.5, seconds=1.0)
        for method, size, right in (("integers", 700, 0.9), ("few", 800, None))
    )
    made = Compressed(
        model, str(path), 900, recipe, trials, ("a reason",), compared, 4.0
    )
    return recipe, ledger, compared, made


def test_a_recipe_shows_what_happens_to_which_weights(shown):
    text = str(shown[0])
    assert "named('kernel')" in text
    assert "Prune(sparsity=0.5)" in text
    assert "first entry that matches" in text
    assert repr(shown[0]).startswith("Recipe(")


def test_a_ledger_shows_every_byte(shown):
    ledger = shown[1]
    (table,) = ledger.tables()
    assert f"{ledger.file_bytes:,}" in table.title
    assert table.rows[-2][0] == "4 smaller variables"
    total = sum(float(row[-1].replace(",", "")) for row in table.rows)
    # Each row is rounded to a byte.
    assert abs(total - ledger.file_bytes) <= len(table.rows) / 2


def test_a_compressed_model_shows_what_was_tried(shown):
    made = shown[3]
    tried, compared = made.tables()
    assert [row[1] for row in tried.rows] == ["700", "800"]
    assert tried.rows[1][2] == ""
    assert tried.note == "a reason"
    assert compared == shown[2].tables()[0]
    assert str(made).startswith("900 bytes became 700 (1.3x)")


def test_a_page_shows_what_was_tried_with_and_without_a_report(shown, tmp_path):
    made = shown[3]
    for one in (made, dataclasses.replace(made, report=None)):
        titles = [block.title for block in one.document().blocks]
        assert "What was tried" in titles
        text = one.to_html(tmp_path / "a.html").read_text()
        assert "2 trials, the chosen one in color" in text
    assert "a reason" in text
    single = dataclasses.replace(made, trials=made.trials[:1])
    assert "What was tried" not in [b.title for b in single.document().blocks]


def test_notebooks_get_the_cells_that_print_shows(shown):
    for one in shown:
        found = _Cells(one._repr_html_())
        for table in one.tables():
            for row in table.rows:
                assert set(row) <= set(found.cells)
