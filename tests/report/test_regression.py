"""Comparisons of other things than whole-number labels: refused, or measured."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dlopt import report
from keras_dlopt.errors import ConfigError, DataError
from keras_dlopt.report import regression
from keras_dlopt.report.quality import labels_of
from keras_dlopt.report.training import Recording, training_figure

X = np.random.default_rng(0).random((50, 4), dtype="float32")


def _net(units=1):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, name="d")])


@pytest.fixture(scope="module")
def pair():
    keras.utils.set_random_seed(0)
    return _net(3), _net(3)


def test_errors_and_differences_equal_their_formulas():
    rng = np.random.default_rng(1)
    one, two, y = rng.normal(size=(3, 20, 2))
    found = regression.errors(one, y)
    gap = one - y
    assert found.mean_absolute_error == pytest.approx(np.abs(gap).mean(), abs=1e-15)
    assert found.root_mean_squared_error == pytest.approx(
        np.sqrt(np.mean(gap**2)), abs=1e-15
    )
    assert found.largest_error == np.abs(gap).max()
    each = [1 - (gap[:, i] ** 2).sum() / (20 * y[:, i].var()) for i in (0, 1)]
    assert found.explained == pytest.approx(np.mean(each), abs=1e-12)
    assert np.isnan(regression.errors(one, np.ones((20, 2))).explained)
    changed = regression.differences(one, two, y)
    assert changed.mean_difference == pytest.approx(np.abs(one - two).mean())
    assert changed.largest_difference == np.abs(one - two).max()
    worse = ((two - y) ** 2).sum(1) > ((one - y) ** 2).sum(1)
    assert changed.worse == worse.mean()


@pytest.mark.parametrize(
    ("outputs", "targets", "text"),
    [
        (np.ones((3, 2)), np.ones(3), r"shape \(3, 2\) and targets of shape \(3,\)"),
        (np.ones(3), np.ones((3, 3)), "one target per output"),
        (np.ones(3), np.array(list("abc")), "must be numbers.*types float64 and <U1"),
        (np.ones(3), np.array([1, np.nan, 1]), "1 of 3 rows of the targets"),
        (np.full((3, 1), np.inf), np.ones(3), "3 of 3 rows of the outputs"),
    ],
)
def test_what_a_regression_cannot_measure_is_refused(outputs, targets, text):
    with pytest.raises(DataError, match=text):
        regression.errors(outputs, targets)


def test_a_regression_gets_no_accuracy(tmp_path):
    keras.utils.set_random_seed(0)
    one, two, y = _net(), _net(), X.mean(1)
    with pytest.raises(
        DataError, match="whole numbers.*call report.compare with task="
    ):
        report.compare(one, two, (X, y))
    found = report.compare(one, two, (X, y), task="regression")  # as it says
    gap = one.predict(X, verbose=0)[:, 0].astype("float64") - y
    assert found.before.quality.mean_absolute_error == pytest.approx(np.abs(gap).mean())
    text = found.to_html(tmp_path / "page.html").read_text()
    assert "root of mean squared error" in text
    assert "accuracy" not in text.lower().replace("of accuracy", "")
    assert "class" not in [r[0] for r in found.document().blocks[0].rows]
    assert not {"accuracy", "class_accuracy"} & set(
        found.to_dict()["before"]["quality"]
    )


@pytest.mark.parametrize(
    ("y", "text"),
    [
        (np.array(["a", "b"]), "Received the type <U1.*class_names="),
        (np.array([0.5, 1.0]), "Received: 0.5 and others, 1 of 2"),
        (np.array([np.nan, 1.0]), "Received: nan"),
        (np.array([[0.2, 0.8], [1.0, 0.0]]), "must be one-hot rows"),
        (np.array([[1, 1, 0], [0, 1, 0]]), "task='multi-label'"),
        (np.array([[0, 0], [0, 1]]), "with a single 1 each"),
        (np.zeros((2, 2, 2)), r"Received shape \(2, 2, 2\)"),
    ],
)
def test_labels_that_are_none_are_refused(y, text):
    with pytest.raises(DataError, match=text):
        labels_of(y)


@pytest.mark.parametrize("kind", ["U", "S", "O"])
def test_words_are_labels_where_the_outputs_have_names(pair, kind, tmp_path):
    names = ("ant", "bee", "cat")
    y = np.random.default_rng(2).integers(0, 3, 50)
    words = np.array(names)[y].astype(kind)
    found = report.compare(*pair, (X, words), class_names=names)
    assert found.before == report.compare(*pair, (X, y)).before
    table = found.document().blocks[1]
    assert [row[0] for row in table.rows] == list(names)
    worst = names[found.changes.worst_class]
    assert f"worst class ({worst})" in found.to_html(tmp_path / "a.html").read_text()
    with pytest.raises(DataError, match="such as 'ant'.*Give class_names="):
        report.compare(*pair, (X, words))
    with pytest.raises(DataError, match="such as 'cat'"):
        report.compare(*pair, (X, words), class_names=(*names[:2], "dog"))
    with pytest.raises(ConfigError, match="a name for each of the 3 classes"):
        report.compare(*pair, (X, y), class_names=names[:2])


def test_a_data_set_is_drawn_once_for_both_models(pair):
    y = np.random.default_rng(2).integers(0, 3, 50)
    whole = report.compare(*pair, (X, y))
    data = tf.data.Dataset.from_tensor_slices((X, y)).shuffle(50).batch(8)
    found = report.compare(*pair, data)
    assert found.changes == whole.changes
    assert found.before.quality.accuracy == whole.before.quality.accuracy
    for given, text in (
        (data.repeat(), r"no end. Give a part of it, with data.take\(n\)"),
        (data.unbatch(), r"single examples. Call data.batch\(n\)"),
        (data.map(lambda x, y: x), "Received: EagerTensor"),
        (data.map(lambda x, y: (x, y, y)), "tuple of 3.*leave out sample weights"),
        ((X, y, y), "Received: tuple of 3"),
        (data.take(0), "The data is empty"),
        (7, "Received: int"),
    ):
        with pytest.raises(DataError, match=text):
            report.compare(*pair, given)


def test_models_of_several_outputs_are_refused():
    given = keras.Input((4,))
    model = keras.Model(given, {"a": given, "b": given})
    with pytest.raises(DataError, match="2 outputs. Compare models of one"):
        report.compare(model, model, (X, X))


def test_own_metrics_stand_in_the_table(pair):
    y = np.random.default_rng(2).integers(0, 3, 50)
    metrics = {
        "top 2": keras.metrics.SparseTopKCategoricalAccuracy(2),
        "mean output": lambda labels, outputs: outputs.mean(),
    }
    found = report.compare(*pair, (X, y), metrics=metrics)
    for model, one in zip(pair, (found.before, found.after), strict=True):
        rows = model.predict(X, verbose=0)
        top = np.argsort(rows, -1)[:, -2:]
        assert one.metrics["top 2"] == pytest.approx((top == y[:, None]).any(1).mean())
        assert one.metrics["mean output"] == pytest.approx(float(rows.mean()))
    rows = {r[0]: r[1:] for r in found.document().blocks[0].rows}
    assert rows["top 2"][0] == f"{found.before.metrics['top 2']:.6g}"
    for bad in (lambda labels, outputs: outputs, 3):
        with pytest.raises(
            ConfigError, match=r"metrics\['bad'\] must be a keras.metrics"
        ):
            report.compare(*pair, (X, y), metrics={"bad": bad})


def test_plots_are_named_for_what_they_show(pair):
    y = np.random.default_rng(2).integers(0, 3, 50)
    found = report.compare(*pair, (X, y), names=("float", "int8"))
    titles = [block.title for block in found.document().blocks]
    assert "Bytes by layer: int8" in titles
    assert "Weights float and int8" in titles


def test_the_loss_of_executions_of_several_steps_is_theirs():
    losses = np.array([4.0, 1.0, -2.5, 3.0, 0.5, -7.0, 2.0])
    recorder = report.Recorder()
    for epoch in range(2):
        recorder.on_epoch_begin(epoch)
        for end in (3, 6, 7):
            recorder.on_train_batch_end(end - 1, {"loss": losses[:end].mean()})
    wanted = [losses[:3].mean(), losses[3:6].mean(), losses[6]] * 2
    np.testing.assert_allclose(recorder.loss, wanted, rtol=1e-12)
    model = _net()
    model.compile("sgd", "mse", steps_per_execution=4)
    recorder.set_model(model)
    recorder.on_train_begin()
    assert recorder.recording("a").each == 4
    with pytest.raises(ConfigError, match=r"the same steps_per_execution.*\[1, 4\]"):
        training_figure([Recording("a", (1.0,), (1.0,)), recorder.recording("b")])
    below = Recording("a", (1.0, -1.0), (0.1, 0.0), 4)
    assert training_figure([below]).png.startswith(b"\x89PNG")
