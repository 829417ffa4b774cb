"""Quality of outputs against twins in plain Python, and the refusals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_dlopt.errors import DataError
from keras_dlopt.report.quality import changes, labels_of, probabilities, quality
from reference import calibration

LOGITS = hnp.arrays(
    np.float64, (20, 4), elements=st.floats(-6, 6, allow_subnormal=False, width=32)
)
LABELS = hnp.arrays(np.int64, (20,), elements=st.integers(0, 3))


@settings(max_examples=60, deadline=None)
@given(LOGITS, LABELS)
def test_quality_equals_the_twin(logits, labels):
    rows = [calibration.softmax(row) for row in logits.tolist()]
    found = quality(logits, labels, from_logits=True)
    # The twin sums in another order; a rounding that moves a confidence over a bin's
    # edge would show as 1 / 20, far above this.
    assert found.negative_log_likelihood == pytest.approx(
        calibration.negative_log_likelihood(rows, labels.tolist()), abs=1e-12
    )
    assert found.accuracy == pytest.approx(
        np.mean([r.argmax() == y for r, y in zip(logits, labels, strict=True)])
    )
    for number in set(labels.tolist()):
        assert found.class_accuracy[number] == pytest.approx(
            calibration.class_accuracy(logits.tolist(), labels.tolist(), number)
        )
    for number in set(range(4)) - set(labels.tolist()):
        assert math.isnan(found.class_accuracy[number])


def test_calibration_error_equals_the_twin():
    rng = np.random.default_rng(0)
    p = probabilities(rng.normal(size=(500, 5)) * 2, from_logits=True)
    y = rng.integers(0, 5, 500)
    assert quality(p, y).calibration_error == pytest.approx(
        calibration.calibration_error(p.tolist(), y.tolist()), abs=1e-12
    )


def test_calibration_error_of_known_cases():
    sure = np.array([[1.0, 0.0]] * 4)
    assert quality(sure, np.zeros(4)).calibration_error == 0.0
    assert quality(sure, np.array([0, 0, 0, 1])).calibration_error == 0.25
    assert quality(sure, np.ones(4)).error == 1.0


@settings(max_examples=60, deadline=None)
@given(LOGITS, LOGITS, LABELS)
def test_changes_equal_the_twin(one, two, labels):
    found = changes(one, two, labels, from_logits=True)
    p, q = one.tolist(), two.tolist()
    assert found.churn == pytest.approx(calibration.churn(p, q))
    drops = [
        calibration.class_accuracy(q, labels.tolist(), k)
        - calibration.class_accuracy(p, labels.tolist(), k)
        for k in sorted(set(labels.tolist()))
    ]
    assert found.worst_class_change == pytest.approx(min(drops), abs=1e-12)
    right = [quality(o, labels, from_logits=True).accuracy for o in (one, two)]
    assert found.newly_right - found.newly_wrong == round(20 * (right[1] - right[0]))


def test_churn_counts_changes_among_wrong_answers_too():
    one, two = np.eye(3)[[0, 1, 2, 2]], np.eye(3)[[0, 2, 0, 1]]
    found = changes(one, two, np.array([0, 1, 1, 1]))
    assert found.churn == 0.75
    assert (found.newly_wrong, found.newly_right) == (1, 1)


@pytest.mark.parametrize("confidence", [0.9, 0.88])
def test_bins_of_neighbouring_confidences_do_not_make_up_for_each_other(confidence):
    higher = confidence + 1 / 15
    p = np.array([[confidence, 1 - confidence], [higher, 1 - higher]])
    found = quality(p, np.array([0, 1])).calibration_error  # right, then wrong
    assert found == pytest.approx((1 - confidence + higher) / 2)


def test_logits_are_told_from_probabilities():
    p = np.array([[0.25, 0.75], [0.5, 0.5]])
    np.testing.assert_allclose(probabilities(p), p)
    np.testing.assert_allclose(probabilities(np.log(p)), p)
    np.testing.assert_allclose(probabilities(p + 3.0), probabilities(p, from_logits=1))


def test_one_column_becomes_two():
    np.testing.assert_allclose(probabilities(np.array([[0.25]])), [[0.75, 0.25]])
    np.testing.assert_allclose(
        probabilities(np.array([[0.0]]), from_logits=True), [[0.5, 0.5]]
    )


def test_a_certain_mistake_costs_a_finite_loss():
    found = quality(np.array([[1.0, 0.0]]), np.array([1]))
    assert found.negative_log_likelihood == pytest.approx(-math.log(1e-7))


def test_labels_come_in_three_shapes():
    for y in (np.array([1, 0]), np.array([[1], [0]]), np.eye(2)[[1, 0]]):
        assert labels_of(y).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: labels_of(np.zeros((2, 2, 2))), r"Received shape \(2, 2, 2\)"),
        (lambda: labels_of(np.zeros(0)), r"Labels must be integers .* shape \(0,\)"),
        (lambda: probabilities(np.zeros(3)), r"must have shape \(n, classes\)"),
        (
            lambda: probabilities(np.array([[np.nan, 1.0], [0.0, 1.0]])),
            "1 of 2 rows .* not finite. The training diverged",
        ),
        (lambda: quality(np.eye(3), np.zeros(2)), "3 rows of outputs and 2 labels"),
        (
            lambda: quality(np.eye(2), np.array([0, 5])),
            "Labels go from 0 to 5, .* 2 classes. Expected 0 to 1",
        ),
        (
            lambda: changes(np.eye(2), np.eye(2, 3), np.array([0, 1])),
            "return 2 and 3 classes; compare models of one task",
        ),
    ],
)
def test_refusals(call, text):
    with pytest.raises(DataError, match=text):
        call()
