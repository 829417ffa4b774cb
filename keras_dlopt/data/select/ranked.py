"""Choices by a score of each example, or by its distance from its class."""

from typing import Any

import numpy as np

from keras_dlopt import checks
from keras_dlopt.data.select.given import classes, count_of, rows, vector
from keras_dlopt.errors import ConfigError


def hardest(scores: Any, keep: int | float, *, skip: float = 0.0) -> np.ndarray:
    """The examples with the highest scores, but for the very highest.

    Args:
        scores: (examples,), such as of `scores_el2n`; of two equal ones the earlier
            example is taken.
        keep: how many, or a share (float).
        skip: share of all examples, the hardest ones, to leave out, since mislabeled
            ones are among them.

    Returns:
        Indices, ascending.

    Raises:
        ConfigError: when fewer than `keep` are left.
        DataError: for scores that are not numbers.

    Example:
        >>> hardest([0.1, 0.9, 0.5, 0.7], 2).tolist()
        [1, 3]
        >>> hardest([0.1, 0.9, 0.5, 0.7], 2, skip=0.25).tolist()
        [2, 3]
    """
    scores = vector(scores, name="scores")
    count = count_of(keep, len(scores))
    left = _without_hardest(scores, count, skip)
    return np.sort(left[:count])


def _without_hardest(scores: np.ndarray, count: int, skip: float) -> np.ndarray:
    """Indices from hard to easy, the `skip` hardest left out."""
    skip = checks.decay(skip, name="skip")
    order = np.argsort(-scores, kind="stable")[round(skip * len(scores)) :]
    if len(order) < count:
        raise ConfigError(
            f"skip={skip:g} leaves {len(order)} of {len(scores)} examples, and keep "
            f"asks for {count}. Lower one of them."
        )
    return order


def stratified(
    scores: Any,
    keep: int | float,
    *,
    skip: float = 0.0,
    bins: int = 50,
    seed: int = 0,
) -> np.ndarray:
    """Coverage-centric selection: as many examples of each stretch of the score.

    The hardest `skip` are left out, the range of the others is cut in `bins` of equal
    width, and the number to keep is spread over the bins from the smallest one on: a
    bin with fewer than its part is taken whole, and the rest goes to the later ones.
    Within a bin examples are drawn at random.

    Args:
        scores: (examples,), high for hard ones.
        keep: how many, or a share (float).
        skip: share of all examples, the hardest ones, to leave out.
        bins: of equal width.
        seed: of the draw.

    Returns:
        Indices, ascending.

    Raises:
        ConfigError: when fewer than `keep` are left.
        DataError: for scores that are not numbers.

    Example:
        >>> stratified([0.0, 0.01, 0.02, 0.03, 0.5, 1.0], 3, bins=3).tolist()[1:]
        [4, 5]

    Source: Zheng et al., "Coverage-centric Coreset Selection for High Pruning Rates"
    (arXiv:2210.15809), algorithm 1.
    """
    scores = vector(scores, name="scores")
    count = count_of(keep, len(scores))
    bins = checks.count(bins, name="bins")
    draw = np.random.default_rng(checks.seed(seed))
    left = np.sort(_without_hardest(scores, count, skip))
    edges = np.linspace(scores[left].min(), scores[left].max(), bins + 1)
    where = np.clip(np.searchsorted(edges, scores[left], side="right") - 1, 0, bins - 1)
    groups = [left[where == i] for i in range(bins)]
    return _spread([draw.permutation(one) for one in groups if len(one)], count)


def _spread(groups: list[np.ndarray], count: int) -> np.ndarray:
    """`count` of groups, as evenly as their sizes allow, the first ones of each."""
    chosen = []
    groups = sorted(groups, key=len)
    for i, group in enumerate(groups):
        part = min(len(group), count // (len(groups) - i))
        chosen.append(group[:part])
        count -= part
    return np.sort(np.concatenate(chosen))


def balanced(
    labels: Any, keep: int | float, *, scores: Any = None, seed: int = 0
) -> np.ndarray:
    """As many examples of each class, the hardest ones or drawn at random.

    Classes with fewer than their part are taken whole; the rest goes to the others.

    Args:
        labels: (examples,) or one-hot.
        keep: how many in all, or a share (float).
        scores: (examples,); the highest of each class are taken. None draws.
        seed: of the draw.

    Returns:
        Indices, ascending.

    Raises:
        ConfigError: for more than there are.
        DataError: for labels or scores that do not fit.

    Example:
        >>> balanced([0, 0, 0, 0, 1, 1], 4, scores=[1, 2, 3, 4, 5, 6]).tolist()
        [2, 3, 4, 5]
    """
    labels = classes(labels)
    count = count_of(keep, len(labels))
    draw = np.random.default_rng(checks.seed(seed))
    if scores is None:
        order = draw.permutation(len(labels))
    else:
        scores = vector(scores, name="scores")
        classes(labels, count=len(scores))
        order = np.argsort(-scores, kind="stable")
    groups = [order[labels[order] == one] for one in np.unique(labels)]
    return _spread(groups, count)


def moderate(features: Any, labels: Any, keep: int | float) -> np.ndarray:
    """Moderate coreset: those at the middle distance from the mean of their class.

    In each class the examples are ordered by `|f - mean f|_2`, and those nearest to the
    median are kept, the same share of each class.

    Args:
        features: (examples, ...), such as of `features`.
        labels: (examples,) or one-hot.
        keep: how many, or a share (float).

    Returns:
        Indices, ascending.

    Raises:
        ConfigError: for more than there are.
        DataError: for features or labels that do not fit.

    Example:
        >>> f = np.array([[0.0], [1.0], [2.0], [3.0], [10.0]])
        >>> moderate(f, np.zeros(5), 2).tolist()
        [0, 1]

    Source: Xia et al., "Moderate Coreset" (ICLR 2023), section 3.
    """
    found = rows(features, name="features").astype("float64")
    labels = classes(labels, count=len(found))
    count = count_of(keep, len(found))
    away = np.empty(len(found))
    for one in np.unique(labels):
        own = labels == one
        distance = np.linalg.norm(found[own] - found[own].mean(axis=0), axis=1)
        # By rank from the median, in shares: each class gives the same share.
        nearest = np.argsort(np.abs(distance - np.median(distance)), kind="stable")
        ranks = np.empty(len(distance))
        ranks[nearest] = (np.arange(len(distance)) + 0.5) / len(distance)
        away[own] = ranks
    return np.sort(np.argsort(away, kind="stable")[:count])
