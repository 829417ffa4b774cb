"""Every form of labels against scikit-learn; what cannot be judged is refused."""

import keras
import numpy as np
import pytest
from sklearn import metrics as sk

from keras_dlopt import report
from keras_dlopt.errors import DataError
from keras_dlopt.report.quality import are_logits, changes, probabilities, quality
from keras_dlopt.report.regression import errors
from keras_dlopt.report.tasks import compared, judge, own_measures

RNG = np.random.default_rng(7)
N = 60
LOGITS = RNG.normal(size=(2, N, 4))
Y = RNG.integers(0, 4, N)
P = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)


def _recalls(y, predicted):
    return sk.recall_score(y, predicted, average=None, zero_division=np.nan)


@pytest.mark.parametrize("form", ["n", "n1", "one-hot", "float"])
@pytest.mark.parametrize("scores", [LOGITS, P], ids=["logits", "probabilities"])
def test_classes(form, scores):
    y = {"n": Y, "n1": Y[:, None], "one-hot": np.eye(4)[Y], "float": Y.astype("f4")}
    found = judge("classification", scores[0], y[form])
    one, two = scores.argmax(-1)
    assert found.accuracy == pytest.approx(sk.accuracy_score(Y, one))
    assert found.negative_log_likelihood == pytest.approx(sk.log_loss(Y, P[0]))
    np.testing.assert_allclose(found.class_accuracy, _recalls(Y, one))
    change = compared("classification", *scores, y[form])
    assert change.churn == pytest.approx(1 - sk.accuracy_score(one, two))
    fall = _recalls(Y, two) - _recalls(Y, one)
    assert change.worst_class == fall.argmin()
    assert change.worst_class_change == pytest.approx(fall.min())


@pytest.mark.parametrize("form", ["n", "n1", "one-hot"])
@pytest.mark.parametrize("logits", [True, False])
def test_one_output_for_two_classes(form, logits):
    y = Y % 2
    given = {"n": y, "n1": y[:, None], "one-hot": np.eye(2)[y]}[form]
    z = LOGITS[:, :, :1]
    p = 1 / (1 + np.exp(-z))
    found = judge("classification", (z if logits else p)[0], given)
    labels = (z[:, :, 0] > 0).astype(int)
    assert found.accuracy == pytest.approx(sk.accuracy_score(y, labels[0]))
    assert found.negative_log_likelihood == pytest.approx(sk.log_loss(y, p[0, :, 0]))
    np.testing.assert_allclose(found.class_accuracy, _recalls(y, labels[0]))
    change = compared("classification", *(z if logits else p), given)
    assert change.churn == pytest.approx(1 - sk.accuracy_score(*labels))


@pytest.mark.parametrize("logits", [True, False])
def test_several_labels_an_example(logits):
    y = RNG.integers(0, 2, (N, 4))
    y[:, 2] = 0  # a label that is never right
    z = LOGITS.copy()
    z[0, :, 2] = -1  # nor found
    scores = z if logits else 1 / (1 + np.exp(-z))
    one, two = (z > 0).astype(int)
    found = judge("multi-label", scores[0], y)
    assert found.accuracy == pytest.approx(1 - sk.hamming_loss(y, one))
    each = [sk.accuracy_score(y[:, i], one[:, i]) for i in range(4)]
    np.testing.assert_allclose(found.class_accuracy, each)
    own = own_measures("multi-label", scores[0], y)
    assert own["examples with all labels right"] == sk.accuracy_score(y, one)
    assert own["F1, mean over labels"] == pytest.approx(
        sk.f1_score(y, one, average="macro", zero_division=0)
    )
    change = compared("multi-label", *scores, y)
    assert change.churn == pytest.approx(sk.hamming_loss(one, two))
    later = [sk.accuracy_score(y[:, i], two[:, i]) for i in range(4)]
    assert change.worst_class == np.argmin(np.subtract(later, each))


@pytest.mark.parametrize("form", ["map", "map1", "one-hot"])
def test_maps(form):
    z = RNG.normal(size=(2, 3, 5, 4, 3))
    y = RNG.integers(0, 2, (3, 5, 4))  # class 2 is predicted, and never right
    given = {"map": y, "map1": y[..., None], "one-hot": np.eye(3)[y]}[form]
    found = judge("segmentation", z[0], given)
    one, two = z.argmax(-1).reshape(2, -1)
    assert found.examples == 60
    assert found.accuracy == pytest.approx(sk.accuracy_score(y.ravel(), one))
    own = own_measures("segmentation", z[0], given)
    assert own["mean intersection over union"] == pytest.approx(
        sk.jaccard_score(y.ravel(), one, average="macro")
    )
    change = compared("segmentation", *z, given)
    assert change.churn == pytest.approx(1 - sk.accuracy_score(one, two))
    binary = judge("segmentation", z[0, ..., :1], y)
    found = own_measures("segmentation", z[0, ..., :1], y)
    mask = (z[0, ..., 0] > 0).ravel()
    assert binary.accuracy == pytest.approx(sk.accuracy_score(y.ravel(), mask))
    assert found["mean intersection over union"] == pytest.approx(
        sk.jaccard_score(y.ravel(), mask, average="macro")
    )


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 3), (1, 1), (1,)])
def test_numbers(shape):
    outputs, y = RNG.normal(size=(2, *shape))
    found = errors(outputs, y)
    assert found.mean_absolute_error == pytest.approx(
        sk.mean_absolute_error(y.reshape(len(y), -1), outputs.reshape(len(y), -1))
    )
    assert found.root_mean_squared_error == pytest.approx(
        sk.mean_squared_error(y.ravel(), outputs.ravel()) ** 0.5
    )
    if len(y) > 1:
        assert found.explained == pytest.approx(sk.r2_score(y, outputs))
    assert errors(outputs.reshape(len(y), -1), y).examples == len(y)


def test_one_kind_of_output_for_both_models():
    """A parent's logits that happen to lie in [0, 1] are logits as its child's are."""
    one, two, y = np.array([[0.2], [0.7]]), np.array([[0.3], [-2.0]]), np.array([1, 1])
    assert changes(one, two, y).churn == 0.5
    assert changes(one, two, y).newly_wrong == 1
    assert changes(one, np.array([[0.3], [0.1]]), y).newly_right == 0
    assert are_logits(one) is False
    assert are_logits(one, told=True) is True


def test_the_compiled_loss_tells_where_values_do_not():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.layers[0].kernel.assign([[1.0]])
    x, y = np.array([[0.2], [0.7]], "float32"), np.array([1, 1])
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    assert report.compare(model, model, (x, y)).before.quality.accuracy == 1.0
    model.compile("sgd", "binary_crossentropy")
    assert report.compare(model, model, (x, y)).before.quality.accuracy == 0.5


def test_a_coarse_softmax_of_many_classes_is_one():
    p = np.random.default_rng(0).dirichlet(np.full(300, 0.5), 20)
    coarse = np.rint(256 * p) / 256
    assert np.abs(coarse.sum(-1) - 1).max() > 0.05
    assert are_logits(coarse) is False


def test_pages_of_each_task(tmp_path):
    keras.utils.set_random_seed(0)
    x = RNG.random((8, 4, 4, 1)).astype("float32")
    maps = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(3, 1)])
    flat = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    places = RNG.integers(0, 3, (8, 4, 4))
    several = RNG.integers(0, 2, (8, 3))
    for model, y, task, words in (
        (maps, places, "segmentation", ("128 places", "mean intersection over union")),
        (flat, several, "multi-label", ("24 decisions", "F1, mean over labels")),
    ):
        found = report.compare(model, model, (x, y), task=task)
        assert found.changes.churn == 0.0
        text = found.to_html(tmp_path / "a.html").read_text()
        assert all(word in text for word in words)


def test_a_sigmoid_of_each_class_counts_as_in_keras():
    scores, y = np.array([[0.9, 0.6], [0.1, 0.3]]), np.array([0, 0])
    found = quality(scores, y)
    loss = keras.losses.SparseCategoricalCrossentropy()(y, scores)
    assert found.negative_log_likelihood == pytest.approx(float(loss), rel=1e-6)
    assert found.accuracy == 0.5
    # A model that gives zeros alone has no probabilities: they are logits.
    assert quality(np.zeros((2, 2)), y).negative_log_likelihood == pytest.approx(
        np.log(2)
    )


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: probabilities(LOGITS[0], from_logits=False),
            r"from_logits=False, but the outputs go from -.* lie in \[0, 1\]",
        ),
        (
            lambda: probabilities(np.array([[1.0, 0], [0, 0]]), from_logits=False),
            "1 of 2 rows of the outputs sum to 0",
        ),
        (
            lambda: judge("classification", np.zeros((2, 3, 4)), np.zeros((2, 3))),
            "task='segmentation'",
        ),
        (
            lambda: quality(np.eye(3)[:2], np.array([[1, 1, 0], [0, 1, 0]])),
            "task='multi-label'",
        ),
        (
            lambda: judge("multi-label", np.zeros((2, 3)), np.zeros(2)),
            r"labels of shape \(2,\) and outputs of shape \(2, 3\)",
        ),
        (
            lambda: judge("multi-label", np.zeros((1, 2)), np.array([[0.5, 1]])),
            "are 0 and 1. Received: 0.5",
        ),
        (
            lambda: judge("segmentation", np.eye(2), np.array([0, 1])),
            r"shape \(n, ..., classes\).*Received shape \(2, 2\).*leave task out",
        ),
        (
            lambda: judge("segmentation", np.zeros((1, 2, 2, 3)), np.zeros((1, 2))),
            r"expected a label a place, \(1, 2, 2\)",
        ),
        (
            lambda: compared("classification", np.eye(2), np.eye(2, 3), [0, 1]),
            r"shape \(2, 2\) and \(2, 3\); compare models of one task",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(call, text):
    with pytest.raises(DataError, match=text):
        call()


def test_places_of_the_void_label_are_left_out():
    rng = np.random.default_rng(0)
    outputs, y = rng.random((2, 3, 4, 5)), rng.integers(0, 5, (2, 3, 4))
    kept = np.ones(y.shape, bool)
    kept[0, 1] = False
    void = np.where(kept, y, 255)
    found = judge("segmentation", outputs, void)
    alone = judge("classification", outputs[kept], y[kept])
    assert found == alone
    assert found.examples == 20
    assert compared("segmentation", outputs, 1 - outputs, void).churn > 0
    many = rng.random((1, 2, 2, 256))
    assert judge("segmentation", many, np.full((1, 2, 2), 255)).examples == 4
    with pytest.raises(DataError, match="Labels go from 0 to 254"):
        judge("segmentation", outputs, np.where(kept, 0, 254))
