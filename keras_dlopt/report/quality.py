"""What a classifier's outputs say: accuracy, calibration, and what changed.

Pure NumPy on outputs and labels, so it serves Keras models, LiteRT and anything else
that returns one row of scores per example.
"""

import dataclasses

import numpy as np

from keras_dlopt.errors import DataError

BINS = 15
# Below this a probability counts as this: one certain mistake must not make the mean
# infinite. The same floor as in Keras' cross-entropy.
FLOOR = 1e-7
_NUMBERS = (
    "Numbers to come close to: call report.compare with task='regression', which "
    "measures errors."
)


@dataclasses.dataclass(frozen=True)
class Quality:
    """How good and how well calibrated a classifier is on one data set.

    Attributes:
        examples: number of examples.
        accuracy: share of right labels, in [0, 1].
        negative_log_likelihood: mean of -ln p(right label), in nats.
        calibration_error: expected calibration error with 15 bins, in [0, 1].
        class_accuracy: share of right labels by class; nan for a class without
            examples.
    """

    examples: int
    accuracy: float
    negative_log_likelihood: float
    calibration_error: float
    class_accuracy: tuple[float, ...]

    @property
    def error(self) -> float:
        """Share of wrong labels, in [0, 1]."""
        return 1.0 - self.accuracy


@dataclasses.dataclass(frozen=True)
class Changes:
    """What differs between two classifiers on the same examples.

    Attributes:
        churn: share of examples whose label differs, in [0, 1].
        newly_wrong: number of examples that only the second gets wrong.
        newly_right: number of examples that only the first gets wrong.
        worst_class: class whose accuracy fell most (or rose least).
        worst_class_change: its change of accuracy, in [-1, 1].
    """

    churn: float
    newly_wrong: int
    newly_right: int
    worst_class: int
    worst_class_change: float


@dataclasses.dataclass(frozen=True)
class Reliability:
    """How often a classifier is right, by how sure it is.

    Attributes:
        examples: in each of 15 bins of confidence, ((m - 1) / 15, m / 15].
        confidence: mean in each bin; 0 in an empty one.
        accuracy: share of right labels in each bin; 0 in an empty one.
    """

    examples: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    @property
    def error(self) -> float:
        """The expected calibration error, in [0, 1]."""
        gaps = np.subtract(self.accuracy, self.confidence)
        return float(np.abs(gaps) @ np.asarray(self.examples) / sum(self.examples))


def labels_of(y: np.ndarray) -> np.ndarray:
    """Integer labels from integers of shape (n,) or (n, 1), or one-hot rows.

    Raises:
        DataError: for anything else, or for no labels at all.

    Example:
        >>> labels_of(np.eye(3)[[2, 0]]).tolist()
        [2, 0]
    """
    y = np.asarray(y)
    if y.dtype.kind not in "biuf":
        raise DataError(
            "Labels must be whole numbers, the places of the right outputs, or one-hot "
            f"rows. Received the type {y.dtype}. report.compare takes words with "
            "class_names=(...), a name per output in the order of the outputs."
        )
    if y.ndim not in (1, 2) or not y.size:
        raise DataError(
            f"Labels must be integers of shape (n,) or one-hot rows. Received shape "
            f"{y.shape}. For a label at each place, as in a map, call report.compare "
            "with task='segmentation'."
        )
    if y.ndim == 2 and y.shape[1] > 1:
        if not ((y == 0) | (y == 1)).all() or (y.sum(-1) != 1).any():
            raise DataError(
                f"Labels of shape {y.shape} must be one-hot rows, with a single 1 "
                f"each. Received: {y[:2].tolist()}. Rows of shares: give "
                "y.argmax(-1). Several labels an example: call report.compare with "
                f"task='multi-label'. {_NUMBERS}"
            )
        return np.asarray(y.argmax(-1), np.int64)
    y = y.reshape(-1)
    whole = np.isfinite(y) & (y == np.rint(y))
    if not whole.all():
        raise DataError(
            f"Labels must be whole numbers. Received: {y[~whole][0]} and others, "
            f"{int((~whole).sum())} of {len(y)}. {_NUMBERS}"
        )
    return y.astype(np.int64)


def probabilities(
    outputs: np.ndarray, *, from_logits: bool | None = None
) -> np.ndarray:
    """Rows of class probabilities, float64, from what a classifier returns.

    Args:
        outputs: shape (n, classes), or (n, 1) for a binary classifier, which becomes
            two columns.
        from_logits: whether the outputs are logits; None finds out, as
            `are_logits` does.

    Raises:
        DataError: for another shape, for values that are not finite, and for outputs
            that are no probabilities though they are said to be.

    Example:
        >>> probabilities(np.array([[0.0, 0.0]])).tolist()
        [[0.5, 0.5]]
    """
    outputs = np.asarray(outputs, np.float64)
    if outputs.ndim != 2 or not outputs.size:
        raise DataError(
            "A classifier's outputs must have shape (n, classes). Received shape "
            f"{outputs.shape}. For an output at each place, as in a map, call "
            "report.compare with task='segmentation'."
        )
    if not np.isfinite(outputs).all():
        bad = int((~np.isfinite(outputs)).any(-1).sum())
        raise DataError(
            f"{bad} of {len(outputs)} rows of the outputs hold values that are not "
            "finite. The training diverged: lower the learning rate."
        )
    if from_logits is None:
        from_logits = are_logits(outputs)
    if not from_logits and not _in_range(outputs):
        raise DataError(
            f"from_logits=False, but the outputs go from {outputs.min():.6g} to "
            f"{outputs.max():.6g}, and probabilities lie in [0, 1]. Leave from_logits "
            "out, or give from_logits=True."
        )
    if outputs.shape[1] == 1:
        zero = np.zeros_like(outputs)
        if not from_logits:
            return np.concatenate([1.0 - outputs, outputs], -1)
        outputs = np.concatenate([zero, outputs], -1)
    if from_logits:
        outputs = np.exp(outputs - outputs.max(-1, keepdims=True))
    sums = outputs.sum(-1, keepdims=True)
    if not sums.all():
        raise DataError(
            f"{int((sums == 0).sum())} of {len(sums)} rows of the outputs sum to 0, "
            "and hold no probabilities. Give from_logits=True if they are logits."
        )
    return np.asarray(outputs / sums)


def are_logits(*outputs: np.ndarray, told: bool | None = None) -> bool:
    """Whether outputs of one or several models, which are of one kind, are logits.

    They are if any lies outside [0, 1]. Else they are probabilities, which are divided
    by the sum of their row as Keras' losses do, unless a row sums to 0.

    Args:
        outputs: of shape (n, classes) or (n, 1).
        told: what to take for values in [0, 1] in rows that do not sum to about 1 (an
            int8 softmax is off by up to 1/512 a class); None for probabilities.

    Example:
        >>> are_logits(np.array([[0.2, 0.9]]), np.array([[-1.0, 0.5]]))
        True
    """
    if not all(_in_range(rows) for rows in outputs):
        return True
    columns = outputs[0].shape[-1]
    sums = np.concatenate([np.asarray(r, np.float64).sum(-1) for r in outputs])
    slack = min(0.05 + columns / 512, 0.5)
    if columns > 1 and np.allclose(sums, 1.0, rtol=0, atol=slack):
        return False
    return bool(told) or (columns > 1 and not sums.all())


def _in_range(outputs: np.ndarray) -> bool:
    return bool(np.min(outputs) >= 0.0 and np.max(outputs) <= 1.0)


def quality(
    outputs: np.ndarray, labels: np.ndarray, *, from_logits: bool | None = None
) -> Quality:
    """Measures a classifier's outputs against the right labels.

    The calibration error groups the examples by confidence c = max p into 15 bins of
    equal width, ((m - 1) / 15, m / 15], and is

        sum over bins of (n_m / n) * |accuracy_m - mean confidence_m|

    Args:
        outputs: logits or probabilities, shape (n, classes).
        labels: integers of shape (n,) or one-hot rows.
        from_logits: as for `probabilities`.

    Raises:
        DataError: if outputs and labels do not fit each other.

    Example:
        >>> quality(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1])).accuracy
        0.5

    Source: Guo et al., "On Calibration of Modern Neural Networks" (arXiv:1706.04599),
    equation 3.
    """
    p, predicted, y = _checked(outputs, labels, from_logits)
    right = predicted == y
    return Quality(
        examples=len(y),
        accuracy=float(right.mean()),
        negative_log_likelihood=float(
            -np.log(np.maximum(p[np.arange(len(y)), y], FLOOR)).mean()
        ),
        calibration_error=_in_bins(p.max(-1), right).error,
        class_accuracy=tuple(_by_class(right, y, p.shape[1]).tolist()),
    )


def reliability(
    outputs: np.ndarray, labels: np.ndarray, *, from_logits: bool | None = None
) -> Reliability:
    """What the calibration error sums up, bin by bin.

    Args:
        outputs: as for `quality`.
        labels: as for `quality`.
        from_logits: as for `probabilities`.

    Raises:
        DataError: if outputs and labels do not fit each other.

    Example:
        >>> found = reliability(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]))
        >>> found.examples[13], round(found.error, 3)
        (2, 0.4)
    """
    p, predicted, y = _checked(outputs, labels, from_logits)
    return _in_bins(p.max(-1), predicted == y)


def changes(
    before: np.ndarray,
    after: np.ndarray,
    labels: np.ndarray,
    *,
    from_logits: bool | None = None,
) -> Changes:
    """What a second classifier does differently from a first, example by example.

    Args:
        before: outputs of the first, shape (n, classes).
        after: outputs of the second, of the same shape.
        labels: integers of shape (n,) or one-hot rows.
        from_logits: as for `probabilities`.

    Raises:
        DataError: if the three do not fit each other.

    Example:
        >>> one, two = np.eye(2)[[0, 1]], np.eye(2)[[0, 0]]
        >>> changes(one, two, np.array([0, 1])).churn
        0.5

    Source: churn as in Milani Fard et al., "Launch and Iterate: Reducing Prediction
    Churn" (NIPS 2016), section 2.
    """
    if from_logits is None and np.ndim(before) == np.ndim(after) == 2:
        # Together: what one lets open, the other may tell.
        from_logits = are_logits(np.asarray(before), np.asarray(after))
    p, one, y = _checked(before, labels, from_logits)
    q, two, _ = _checked(after, labels, from_logits)
    if p.shape != q.shape:
        raise DataError(
            f"The two models return {p.shape[1]} and {q.shape[1]} classes; compare "
            "models of one task."
        )
    change = _by_class(two == y, y, p.shape[1]) - _by_class(one == y, y, p.shape[1])
    worst = int(np.nanargmin(change))
    return Changes(
        churn=float((one != two).mean()),
        newly_wrong=int(((one == y) & (two != y)).sum()),
        newly_right=int(((one != y) & (two == y)).sum()),
        worst_class=worst,
        worst_class_change=float(change[worst]),
    )


def _checked(
    outputs: np.ndarray, labels: np.ndarray, from_logits: bool | None
) -> tuple[np.ndarray, ...]:
    """Probabilities, predicted labels, right labels."""
    p, y = probabilities(outputs, from_logits=from_logits), labels_of(labels)
    # From the outputs: rounding in the softmax can make the two largest equal.
    scores = np.asarray(outputs)
    predicted = scores.argmax(-1)
    if scores.shape[1] == 1:
        told = are_logits(scores) if from_logits is None else from_logits
        predicted = (scores[:, 0] > (0.0 if told else 0.5)).astype(np.int64)
    if len(p) != len(y):
        raise DataError(
            f"There are {len(p)} rows of outputs and {len(y)} labels; expected as many."
        )
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise DataError(
            f"Labels go from {y.min()} to {y.max()}, but the outputs have "
            f"{p.shape[1]} classes. Expected 0 to {p.shape[1] - 1}."
        )
    return p, predicted, y


def _in_bins(confidence: np.ndarray, right: np.ndarray) -> Reliability:
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count, sure, hits = (
        np.bincount(bins, weights=w, minlength=BINS) for w in (None, confidence, right)
    )
    number = np.maximum(count, 1)
    return Reliability(
        examples=tuple(count.tolist()),
        confidence=tuple((sure / number).tolist()),
        accuracy=tuple((hits / number).tolist()),
    )


def _by_class(right: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    count = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels, weights=right, minlength=classes)
    return np.where(count > 0, hits / np.maximum(count, 1), np.nan)
