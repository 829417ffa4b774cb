"""How the outputs of each kind of task are judged.

A map of labels (segmentation) is judged place by place, several labels an example
(multi-label) decision by decision, both as classifiers are. Pure NumPy.
"""

import dataclasses
from typing import Any

import numpy as np

from keras_dlopt.errors import DataError
from keras_dlopt.report import regression
from keras_dlopt.report.quality import (
    Changes,
    Quality,
    Reliability,
    are_logits,
    changes,
    labels_of,
    quality,
    reliability,
)
from keras_dlopt.report.regression import Differences, Errors

# What data sets of segmentation give to places that belong to no class.
VOID = 255
TASKS = ("classification", "multi-label", "segmentation", "regression")


def judge(
    task: str, outputs: np.ndarray, y: np.ndarray, *, from_logits: bool | None = None
) -> Quality | Errors:
    """How good one model's outputs are.

    Args:
        task: one of `TASKS`.
        outputs: (n, classes) or (n, 1); for a segmentation (n, ..., classes); for
            several labels a score each, (n, labels).
        y: labels; for a segmentation (n, ...), (n, ..., 1) or one-hot (n, ...,
            classes), where places of the label 255 are left out if that is no class;
            for several labels 0 and 1 of shape (n, labels).
        from_logits: as for `report.quality`.

    Raises:
        DataError: if outputs and labels do not fit each other or the task.

    Example:
        >>> judge("multi-label", np.array([[0.9, 0.2]]), np.array([[1, 1]])).accuracy
        0.5
    """
    if task == "regression":
        return regression.errors(outputs, y)
    rows, labels = _rows(task, outputs, y)
    found = quality(rows, labels, from_logits=from_logits)
    if task == "multi-label":
        told = are_logits(rows) if from_logits is None else from_logits
        right = _decided(outputs, told) == (np.asarray(y) > 0.5)
        each = tuple(right.mean(0).tolist())
        return dataclasses.replace(found, class_accuracy=each)
    return found


def compared(
    task: str,
    before: np.ndarray,
    after: np.ndarray,
    y: np.ndarray,
    *,
    from_logits: bool | None = None,
) -> Changes | Differences:
    """What a second model does differently from a first.

    Args:
        task: one of `TASKS`.
        before: outputs of the first, as for `judge`.
        after: outputs of the second.
        y: labels, as for `judge`.
        from_logits: as for `report.quality`.

    Raises:
        DataError: if the three do not fit each other or the task.

    Example:
        >>> one, two = np.array([[0.9, 0.2]]), np.array([[0.9, 0.7]])
        >>> compared("multi-label", one, two, np.array([[1, 1]])).churn
        0.5
    """
    if task == "regression":
        return regression.differences(before, after, y)
    if np.shape(before) != np.shape(after):
        raise DataError(
            f"The two models return outputs of shape {np.shape(before)} and "
            f"{np.shape(after)}; compare models of one task."
        )
    first, labels = _rows(task, before, y)
    second, _ = _rows(task, after, y)
    if from_logits is None:
        from_logits = are_logits(first, second)
    found = changes(first, second, labels, from_logits=from_logits)
    if task != "multi-label":
        return found
    one, two = (
        (_decided(rows, from_logits) == (np.asarray(y) > 0.5)).mean(0)
        for rows in (before, after)
    )
    worst = int(np.argmin(two - one))
    return dataclasses.replace(
        found, worst_class=worst, worst_class_change=float((two - one)[worst])
    )


def bins(
    task: str, outputs: np.ndarray, y: np.ndarray, *, from_logits: bool | None = None
) -> Reliability:
    """What the calibration error sums up, as for `judge`; not for a regression.

    Raises:
        DataError: if outputs and labels do not fit each other or the task.
    """
    return reliability(*_rows(task, outputs, y), from_logits=from_logits)


def own_measures(
    task: str, outputs: np.ndarray, y: np.ndarray, *, from_logits: bool | None = None
) -> dict[str, float]:
    """What is usual for a task beside accuracy, by name.

    Mean intersection over union, over the classes that occur in the labels or the
    outputs; for several labels the share of examples with all of them right, and F1 =
    2 TP / (2 TP + FP + FN), averaged over labels, 0 where there is nothing to count.
    """
    if task == "segmentation":
        rows, labels = _rows(task, outputs, y)
        one_column = rows.shape[1] == 1
        told = are_logits(rows) if from_logits is None else from_logits
        predicted = _decided(rows, told)[:, 0] if one_column else rows.argmax(-1)
        return {"mean intersection over union": _overlap(predicted, labels)}
    if task == "multi-label":
        rows, _ = _rows(task, outputs, y)
        told = are_logits(rows) if from_logits is None else from_logits
        found, wanted = _decided(outputs, told), np.asarray(y) > 0.5
        hits = (found & wanted).sum(0)
        total = found.sum(0) + wanted.sum(0)
        f1 = np.where(total > 0, 2 * hits / np.maximum(total, 1), 0.0)
        return {
            "examples with all labels right": float((found == wanted).all(-1).mean()),
            "F1, mean over labels": float(f1.mean()),
        }
    return {}


def _decided(outputs: np.ndarray, logits: bool | None) -> np.ndarray:
    return np.asarray(np.asarray(outputs) > (0.0 if logits else 0.5))


def _overlap(predicted: np.ndarray, labels: np.ndarray) -> float:
    classes = int(max(predicted.max(), labels.max())) + 1
    both, one, two = (
        np.bincount(v, minlength=classes)
        for v in (labels[predicted == labels], predicted.astype(int), labels)
    )
    union = one + two - both
    return float((both[union > 0] / union[union > 0]).mean())


def _rows(task: str, outputs: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and labels as those of a classifier of single things."""
    outputs, y = np.asarray(outputs), np.asarray(y)
    if task == "multi-label":
        if outputs.ndim != 2 or y.shape != outputs.shape or not y.size:
            raise DataError(
                "Several labels an example are 0 and 1 of shape (n, labels), with a "
                f"score each. Received labels of shape {y.shape} and outputs of shape "
                f"{outputs.shape}."
            )
        if not ((y == 0) | (y == 1)).all():
            raise DataError(
                "Several labels an example are 0 and 1. Received: "
                f"{y[(y != 0) & (y != 1)][0]} and others."
            )
        return outputs.reshape(-1, 1), y.reshape(-1)
    if task != "segmentation":
        return outputs, y
    if outputs.ndim < 3 or not outputs.size:
        raise DataError(
            "A segmentation's outputs have shape (n, ..., classes), a row of scores a "
            f"place. Received shape {outputs.shape}. For one label an example, leave "
            "task out."
        )
    classes = outputs.shape[-1]
    if y.shape == outputs.shape and classes > 1:
        y = labels_of(y.reshape(-1, classes))
    elif y.shape not in (outputs.shape[:-1], (*outputs.shape[:-1], 1)):
        raise DataError(
            f"There are outputs of shape {outputs.shape} and labels of shape "
            f"{y.shape}; expected a label a place, {outputs.shape[:-1]}."
        )
    rows, labels = outputs.reshape(-1, classes), labels_of(y.reshape(-1))
    known = (labels != VOID) | (classes > VOID)
    return rows[known], labels[known]
