"""A closer look: flips, reliability, corruptions, saliency, what was tried."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from scipy.stats import spearmanr

from keras_dlopt import report
from keras_dlopt.errors import ConfigError, DataError
from keras_dlopt.report import figures, saliency
from keras_dlopt.report.flips import flips
from keras_dlopt.report.quality import quality, reliability
from keras_dlopt.report.robustness import CORRUPTIONS, SEVERITIES, corrupted

RNG = np.random.default_rng(3)
IMAGES = RNG.random((12, 6, 6, 1)).astype("float32")
Y = RNG.integers(0, 3, 12)


def _net(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )


@pytest.fixture(scope="module")
def pair():
    return _net(0), _net(1)


@pytest.fixture(scope="module")
def found(pair):
    return report.compare(*pair, (IMAGES, Y), robustness=True, saliency=True)


def test_flips_are_the_changed_labels_newly_wrong_and_sure_ones_first():
    one, two = RNG.normal(size=(2, 30, 3))
    y = RNG.integers(0, 3, 30)
    images = np.arange(30.0).reshape(30, 1, 1, 1) * np.ones((1, 2, 2, 1))
    shown = flips(one, two, y, from_logits=True, images=images[:20])
    a, b = one.argmax(-1), two.argmax(-1)
    sure = np.exp(two) / np.exp(two).sum(-1, keepdims=True)
    wanted = sorted(
        np.flatnonzero(a != b), key=lambda i: (a[i] != y[i], -sure[i].max())
    )
    assert [f.index for f in shown] == wanted[:12]
    for f in shown:
        assert (f.label, f.before, f.after) == (y[f.index], a[f.index], b[f.index])
        assert f.confidence == pytest.approx(sure[f.index].max())
        if f.index < 20:
            assert f.image[0, 0, 0] == round(255 * f.index / 19)
        else:
            assert f.image is None


def test_bins_add_up_to_the_calibration_error():
    logits, y = RNG.normal(size=(200, 4)), RNG.integers(0, 4, 200)
    bins = reliability(logits, y)
    assert bins.error == quality(logits, y).calibration_error
    assert sum(bins.examples) == 200
    right = np.dot(bins.accuracy, bins.examples)
    assert right == pytest.approx(200 * quality(logits, y).accuracy)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_keep_range_and_dtype_and_grow(name):
    for images in (IMAGES * 3 - 1, (IMAGES * 255).astype("uint8")):
        far = []
        for severity in SEVERITIES:
            made = corrupted(images, name, severity)
            assert made.dtype == images.dtype
            assert made.shape == images.shape
            assert made.min() >= images.min()
            assert made.max() <= images.max()
            np.testing.assert_array_equal(made, corrupted(images, name, severity))
            far.append(np.abs(made.astype(float) - images).mean())
        assert far[0] > 0
        # Whole pixels are dropped: on six of them severities may be equal.
        assert far == sorted(far) or name == "pixelated"


def test_robustness_is_that_of_the_models_on_the_corrupted_images(pair, found):
    assert len(found.robustness) == len(CORRUPTIONS) * len(SEVERITIES)
    row = found.robustness[-1]
    x = corrupted(IMAGES, row.corruption, row.severity)
    one, two = (m.predict(x, verbose=0).argmax(-1) for m in pair)
    assert row.before == pytest.approx(np.mean(one == Y))
    assert row.after == pytest.approx(np.mean(two == Y))
    assert row.churn == pytest.approx(np.mean(one != two))


def test_saliency_of_linear_models_is_that_of_their_weights(pair, found):
    one, two = (np.abs(m.layers[-1].kernel.numpy()) for m in pair)
    labels = pair[0].predict(IMAGES, verbose=0).argmax(-1)
    wanted = [spearmanr(one[:, k], two[:, k]).statistic for k in labels]
    assert found.saliency.examples == 12
    assert found.saliency.agreement == pytest.approx(np.mean(wanted))
    assert found.saliency.lowest == pytest.approx(np.min(wanted))
    np.testing.assert_allclose(
        found.saliency.maps[0, 1].ravel(), one[:, labels[0]], rtol=1e-6
    )
    same = saliency.saliency((pair[0], pair[0]), IMAGES)
    assert same.agreement == pytest.approx(1.0)


def test_inputs_that_are_no_images():
    rows = RNG.random((10, 5)).astype("float32")
    nets = []
    for seed in (0, 1):
        keras.utils.set_random_seed(seed)
        nets.append(keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)]))
    found = report.compare(*nets, (rows, Y[:10]), saliency=True, class_names="abc")
    blocks = {b.title: b for b in found.document().blocks}
    changed = blocks["Examples whose label changed"]
    one, two = (m.predict(rows, verbose=0).argmax(-1) for m in nets)
    assert len(changed.rows) == np.sum(one != two) > 0
    assert set(changed.rows[0][1:4]) <= set("abc")
    assert "rank correlation" in blocks["Saliency"].columns
    whole = keras.Sequential([keras.Input((5,), dtype="int32"), keras.layers.Dense(3)])
    for call, text in (
        (
            lambda: report.compare(*nets, (rows, Y[:10]), robustness=True),
            "other inputs",
        ),
        (
            lambda: report.compare(
                whole, whole, (rows.astype("int32"), Y[:10]), saliency=True
            ),
            r"one input of floating-point.*\['int32'\].*astype\('float32'\)",
        ),
    ):
        with pytest.raises(DataError, match=text):
            call()


def test_models_without_a_gradient_are_refused(monkeypatch, pair):
    flat = _net(0)
    flat.layers[-1].kernel.assign(np.zeros((36, 3)))
    with pytest.raises(DataError, match="No example has a gradient in both models"):
        saliency.saliency((pair[0], flat), IMAGES)
    cut = keras.Sequential([flat, keras.layers.Lambda(keras.ops.stop_gradient)])
    with pytest.raises(DataError, match="No example has a gradient"):
        saliency.saliency((cut, cut), IMAGES)
    monkeypatch.setattr(saliency, "on_tensorflow", lambda: False)
    with pytest.raises(ConfigError, match="the backend 'tensorflow'. Leave it out"):
        saliency.saliency(pair, IMAGES)


def test_the_page_has_all_of_it_and_json_no_picture(found, tmp_path):
    titles = [b.title for b in found.document().blocks]
    for title in ("Examples whose label changed", "Reliability", "Robustness"):
        assert title in titles
    text = found.to_html(tmp_path / "a.html").read_text()
    assert text.count("data:image/png;base64,") >= 12
    assert len(text) < 3_000_000
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert "image" not in data["flips"][0]
    assert set(data["saliency"]) == {"agreement", "lowest", "examples"}


@dataclasses.dataclass
class _Trial:
    method: str
    bytes: int
    accuracy: float | None
    loss: float


@pytest.mark.parametrize("classifies", [True, False])
def test_the_edge_of_what_was_tried(classifies):
    rows = [("b", 20, 0.9), ("a", 10, 0.8), ("worse", 30, 0.85), ("c", 40, 0.95)]
    trials = [
        _Trial(name, size, value if classifies else None, 1 - value)
        for name, size, value in rows
    ]
    axis = figures.pareto_figure(trials).drawn.axes[0]
    edge = [0.8, 0.9, 0.95] if classifies else [0.2, 0.1, 0.05]
    np.testing.assert_allclose(axis.lines[0].get_xdata(), [10, 20, 40])
    np.testing.assert_allclose(axis.lines[0].get_ydata(), edge)
    assert [t.get_text() for t in axis.texts] == ["b", "a", "worse", "c"]
