"""Two models side by side: figures, plain data, HTML, terminal."""

import html.parser
import io
import json
import re

import keras
import numpy as np
import pytest
import rich.console

import keras_dlopt as dlopt
from keras_dlopt import drawing, report, tables
from keras_dlopt.errors import ConfigError
from keras_dlopt.report import comparison, document, pages, plots, weights


def _network():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(8, 3, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, name="dense"),
        ]
    )


@pytest.fixture(scope="module")
def made():
    keras.utils.set_random_seed(1)
    parent = _network()
    recipe = dlopt.Recipe(
        [(dlopt.named("kernel"), dlopt.Prune(0.75) >> dlopt.Cluster(4))]
    )
    small = dlopt.transform(parent, recipe)
    small.update_transforms(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6, 6, 2)).astype("float32")
    y = rng.integers(0, 4, 40)
    return parent, small, (x, y), report.compare(parent, small, (x, y))


def test_figures_are_those_of_the_models(made):
    parent, small, (x, y), found = made
    one, two = parent.predict(x, verbose=0), small.predict(x, verbose=0)
    assert found.before.quality.accuracy == np.mean(one.argmax(-1) == y)
    assert found.after.quality.accuracy == np.mean(two.argmax(-1) == y)
    assert found.changes.churn == np.mean(one.argmax(-1) != two.argmax(-1))
    assert found.before.sparsity == 0.0
    assert found.after.sparsity == 0.75


def test_bytes_are_those_of_the_written_file(made, tmp_path):
    _, small, _, found = made
    dlopt.save_compressed(small, tmp_path / "model.dlopt")
    assert found.after.ledger.file_bytes == (tmp_path / "model.dlopt").stat().st_size


def test_histograms_count_every_weight_but_the_zeros(made):
    parent, *_, found = made
    for one in found.histograms:
        value = weights.kernels(parent)[one.path]
        assert sum(one.before) == value.size
        assert sum(one.after) == round(value.size * 0.25)
        assert one.zeros == 0.75


def test_histogram_of_a_constant_weight():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.layers[0].kernel.assign(np.full((3, 2), 2.0))
    (one,) = weights.histograms(model, model)
    assert (one.low, one.high, sum(one.before)) == (1.5, 2.5, 6)


def test_plain_data_is_json(made):
    found = made[-1]
    text = json.dumps(found.to_dict(), allow_nan=False)
    data = json.loads(text)
    assert data["after"]["ledger"]["file_bytes"] == found.after.ledger.file_bytes
    assert data["changes"]["churn"] == found.changes.churn


def test_plain_leaves_no_number_that_json_lacks():
    assert comparison.plain({1: [float("inf"), (2.5,)]}) == {"1": [None, [2.5]]}


class _Page(html.parser.HTMLParser):
    """Collects tags, addresses and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_html_is_whole_and_needs_nothing_else(made, tmp_path):
    found = made[-1]
    path = found.to_html(tmp_path / "report.html")
    page = _Page(path.read_text())
    assert page.tags.count("svg") == 3
    assert all(a.startswith(("#", "data:")) for a in page.addresses)
    assert not {"script", "iframe", "img"} & set(page.tags)
    assert "http" not in path.read_text()
    assert "url(h" not in path.read_text()
    words = " ".join(page.words)
    assert f"{found.after.ledger.file_bytes:,}" in words
    assert "labels that changed (churn)" in words
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_names_from_the_user_are_escaped(made):
    found = made[-1]
    doc = document.Document("<script>1</script>", "a & b", ())
    assert "<script>" not in report.to_html(doc)
    assert "a &amp; b" in report.to_html(doc)
    table = document.Table("t", ("", "[red]x"), (("[bold]", "1"),))
    assert "[bold]" in _printed(tables.rich_table(table))
    assert found.histograms


def _printed(thing, width=100):
    console = rich.console.Console(file=io.StringIO(), width=width)
    console.print(thing)
    return console.file.getvalue()


def test_terminal_shows_the_same_figures(made):
    found = made[-1]
    text = _printed(found)
    assert document.size(found.after.ledger.file_bytes) in text
    assert document.percent(found.after.quality.accuracy) in text
    # 80 columns hold every figure unbroken.
    narrow = _printed(found, width=80)
    assert document.size(found.before.ledger.plain_bytes) in narrow


def test_entropy_bound_is_shown_only_where_there_is_a_codebook(made):
    found = made[-1]
    (row,) = [
        row
        for row in pages.comparison_table(found.before, found.after, found.changes).rows
        if row[0].startswith("entropy bound")
    ]
    assert row[1] == ""


def test_a_page_with_latency_and_many_classes(made):
    x = made[2][0]
    wide = keras.Sequential([keras.Input((4,)), keras.layers.Dense(30)])
    times = report.latency({"a": lambda v: v, "b": lambda v: v}, x, calls=3)
    rows = np.eye(4, dtype="float32")[np.arange(40) % 4]
    found = report.compare(
        wide, wide, (rows, np.arange(40) % 30), latency=times, names=("one", "two")
    )
    titles = {b.title: b for b in found.document().blocks}
    assert len(titles["Accuracy by class"].rows) == 24
    assert "The 24 of 30 classes" in titles["Accuracy by class"].note
    assert titles["Time of one call"].rows[0][2] == "1.00x"
    assert found.document().title == "one and two"


def test_latency_takes_turns():
    order = []
    functions = {"a": lambda x: order.append("a"), "b": lambda x: order.append("b")}
    found = report.latency(functions, None, calls=2)
    assert order == ["a"] * 3 + ["b"] * 3 + ["a", "b", "a", "b"]
    assert found["a"].tenth <= found["a"].median <= found["a"].ninetieth


def test_latency_refuses_nothing():
    with pytest.raises(ConfigError, match=r"one call. Received: \['a'\] and calls=0"):
        report.latency({"a": abs}, 1, calls=0)


def test_unwritable_page(made, tmp_path):
    with pytest.raises(ConfigError, match="Cannot write .*Choose a folder"):
        made[-1].to_html(tmp_path / "absent" / "report.html")


def test_plots_are_png_and_take_gaps():
    loss = np.array([1.0, np.nan, 0.5, 0.0])
    drawn = plots.training_plot(loss, np.full(4, 1e-3), [("a", 0), ("b", 2)])
    assert drawing.png(drawn).startswith(b"\x89PNG\r\n")
    drawn = plots.layers_plot(["x"], {"values": [0.0]}, [0])
    assert drawing.png(drawn).startswith(b"\x89PNG")


def test_smooth_against_a_loop():
    rng = np.random.default_rng(0)
    values = rng.normal(size=50)
    values[7] = np.nan
    expected = [np.nanmean(values[max(i - 4, 0) : i + 1]) for i in range(50)]
    np.testing.assert_allclose(plots.smooth(values, 5), expected)
    assert np.isnan(plots.smooth(np.array([np.nan]))).all()


def test_numbers_in_words():
    assert document.points(0.0123, 1) == "+1.2 points"
    assert re.fullmatch(r"1,234,567", document.size(1234567))
