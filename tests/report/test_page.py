"""The page in a browser: what it asks for, says to the console, and how wide it is."""

import re
import shutil
import subprocess

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt import drawing, report
from keras_dlopt.report import plots

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PHONE = 390  # pixels


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with long names, a formula's sign, markup, and every kind of block."""
    keras.utils.set_random_seed(0)
    long = "a_layer_with_a_name_that_is_longer_than_any_phone_is_wide_and_more"
    parent = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    parent.layers[-1].name = long
    small = dlopt.transform(
        parent, dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    )
    small.update_transforms(0)
    rng = np.random.default_rng(0)
    x = rng.random((20, 4, 4, 1), dtype="float32")
    found = report.compare(
        parent,
        small,
        (x, rng.integers(0, 3, 20)),
        names=("<b>float</b>", "small"),
        class_names=("<script>alert(1)</script>", "b", long),
    )
    trace = report.Recording("$a$ & <i>", (2.0, 1.0, 0.5), (1e-3,) * 3)
    path = tmp_path_factory.mktemp("page") / "report.html"
    return found.to_html(path, report.training_figure([trace], note="Curves."))


def test_the_page_asks_for_nothing_and_is_small(page):
    text = page.read_text()
    assert "http" not in text
    assert len(text) < 3_000_000
    assert set(re.findall(r"""(?:src|href)=["']?(.)""", text)) == {"#", "d"}
    assert "<script" not in text
    assert "<b>float" not in text


def test_names_are_no_formulas_and_no_markup(page):
    text = page.read_text()
    assert "$a$ &amp; &lt;i&gt;" in text
    assert "&lt;script&gt;alert(1)" in text


def test_colors_are_those_of_the_page(page):
    """Nothing is drawn in a color that the dark page cannot change."""
    drawn = re.findall(r"<svg.*?</svg>", page.read_text(), re.S)
    assert len(drawn) == 5
    assert all("var(--" in one and "#000000" not in one for one in drawn)


def test_plots_are_the_same_text_each_time():
    one, two = (
        drawing.svg(plots.layers_plot(["x"], {"values": [3.0]}, [8])) for _ in "ab"
    )
    assert one == two
    assert 'id="p' in one
    assert "font-family" not in one


def test_a_long_training_is_a_small_plot():
    loss = np.random.default_rng(0).random(100_000)
    figure = plots.training_plot(loss, np.full(len(loss), 1e-3), [("all", 0)])
    assert len(drawing.svg(figure)) < 300_000
    top, bottom = figure.axes
    assert [line.get_label() for line in top.lines] == [
        "each step, 1 in 34",
        "mean of 20 steps",
    ]
    x = top.lines[0].get_xdata()
    np.testing.assert_array_equal(top.lines[0].get_ydata(), loss[x])
    np.testing.assert_allclose(top.lines[1].get_ydata(), plots.smooth(loss)[x])
    assert len(bottom.lines[0].get_xdata()) == len(x)


def test_a_plot_is_written_where_a_path_is_given(tmp_path):
    figure, axis = drawing.drawing(1.0)
    axis.plot([0, 1])
    for name, begins in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        assert drawing.finished(figure, tmp_path / name) is figure
        assert (tmp_path / name).read_bytes().startswith(begins)


def test_the_report_says_where_it_comes_from(page):
    text = page.read_text()
    for part in (
        "How this was made",
        "20 examples",
        "UTC",
        "keras 3",
        "Sequential of 51 parameters",
    ):
        assert part in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the path")
def test_a_phone_shows_the_page_without_errors(page, tmp_path):
    """Read from inside a frame as wide as a phone: a window cannot be so narrow."""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<iframe id=f src='{page.as_uri()}' style='border:0;width:{PHONE}px;"
        "height:800px'></iframe><p id=told></p><script>onload = () => {"
        "const d = document.getElementById('f').contentDocument;"
        "told.textContent = 'width ' + d.documentElement.scrollWidth + ', cards '"
        "+ d.querySelectorAll('.cards li').length + ', plots '"
        "+ [...d.querySelectorAll('svg')].filter(s => s.clientWidth > 300).length"
        "}</script>"
    )
    done = subprocess.run(
        [
            CHROMIUM,
            *["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-sync"],
            *["--disable-background-networking", "--disable-component-update"],
            *["--hide-scrollbars", "--enable-logging=stderr"],
            "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    told = re.search(r"width (\d+), cards (\d+), plots (\d+)", done.stdout)
    assert told, done.stdout[-500:]
    assert [int(n) for n in told.groups()] == [PHONE, 5, 5]
    assert [n for n in done.stderr.splitlines() if "CONSOLE" in n] == []
