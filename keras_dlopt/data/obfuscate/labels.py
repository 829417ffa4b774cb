"""Labels that lie now and then, by a known amount; and labels that only look softer."""

import math

import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import DataError


def randomized_response(
    labels: np.ndarray, *, classes: int, epsilon: float, seed: int = 0
) -> np.ndarray:
    r"""Labels that are kept with a known probability, else drawn among the others.

    Warner's randomized response (1965) for k classes: with e = exp(epsilon) a label is
    kept with probability e / (e + k - 1), and becomes each other with 1 / (e + k - 1).
    No answer is more than e times as likely under one label as under another: each
    label is epsilon-differentially private by itself, whatever else is known.

    Hides labels. Does not hide the examples, nor the share of each class, which
    `class_shares` gives back. One draw only: drawing again for each epoch multiplies
    epsilon. Who knows the seed knows which labels were kept.

    Args:
        labels: whole numbers from 0 to `classes` - 1, of any shape.
        classes: how many there are.
        epsilon: of each label.
        seed: of the draws.

    Returns:
        Labels of the same shape and type.

    Raises:
        DataError: for labels out of range.

    Example:
        >>> kept = randomized_response(np.zeros(10_000, int), classes=10, epsilon=2.0)
        >>> bool(abs((kept == 0).mean() - math.exp(2) / (math.exp(2) + 9)) < 0.02)
        True
    """
    labels = _checked(labels, classes)
    epsilon = checks.rate(epsilon, name="epsilon")
    rng = np.random.default_rng(checks.seed(seed))
    lies = rng.random(labels.shape) >= _kept(classes, epsilon)
    others = (labels + rng.integers(1, classes, labels.shape)) % classes
    return np.where(lies, others, labels).astype(labels.dtype)


def _kept(classes: int, epsilon: float) -> float:
    return 1 / (1 + (classes - 1) * math.exp(-epsilon))


def class_shares(labels: np.ndarray, *, classes: int, epsilon: float) -> np.ndarray:
    """The share of each class before `randomized_response`, without bias.

    Args:
        labels: what it returned.
        classes: as there.
        epsilon: as there, above 0.

    Returns:
        (classes,); adds up to 1. Small samples may give numbers below 0.
    """
    labels = _checked(labels, classes)
    epsilon = checks.positive(epsilon, name="epsilon")
    kept = _kept(classes, epsilon)
    lie = (1 - kept) / (classes - 1)
    seen = np.bincount(labels.ravel(), minlength=classes) / labels.size
    shares: np.ndarray = (seen - lie) / (kept - lie)
    return shares


def smoothed(
    labels: np.ndarray,
    *,
    classes: int,
    amount: float = 0.1,
    noise: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """One row of weights a label: smoothed (Szegedy 2016), with noise on the others.

    Helps calibration. Hides nothing: the largest weight is the label's, always. For a
    label that is hidden use `randomized_response`.

    Args:
        labels: whole numbers from 0 to `classes` - 1, (count,).
        classes: how many there are.
        amount: what all classes share among them, below 1 - 1 / classes.
        noise: 0, all share alike; 1, by shares drawn from all there are.
        seed: of the draws.

    Returns:
        (count, classes), float32; rows add up to 1.

    Example:
        >>> smoothed(np.array([1]), classes=4, amount=0.2).round(2).tolist()
        [[0.05, 0.85, 0.05, 0.05]]
    """
    labels = _checked(labels, classes)
    amount = checks.number(amount, name="amount", least=0, below=0.5)
    noise = checks.probability(noise, name="noise")
    rng = np.random.default_rng(checks.seed(seed))
    drawn = rng.dirichlet(np.ones(classes), labels.shape)
    shares = (1 - noise) / classes + noise * drawn
    rows: np.ndarray = amount * shares + (1 - amount) * np.eye(classes)[labels]
    return np.asarray(rows, "float32")


def _checked(labels: np.ndarray, classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    classes = checks.whole(classes, name="classes", least=2)
    whole = np.issubdtype(labels.dtype, np.integer)
    if not whole or (labels.size and not 0 <= labels.min() <= labels.max() < classes):
        found = f"{labels.dtype}"
        if labels.size and whole:
            found += f" from {labels.min()} to {labels.max()}"
        raise DataError(
            f"labels must be whole numbers from 0 to {classes - 1}. Received: {found}. "
            "Give each class a number from 0 first."
        )
    return labels
