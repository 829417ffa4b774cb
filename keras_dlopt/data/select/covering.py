"""Choices by where examples lie: covering all, or dropping what is there twice."""

from typing import Any

import numpy as np

from keras_dlopt import checks
from keras_dlopt.data.select.given import count_of, rows
from keras_dlopt.errors import ConfigError


def k_center(
    features: Any, keep: int | float, *, start: Any = None, seed: int = 0
) -> np.ndarray:
    """Greedy k-center: each next example is the one farthest from those chosen.

    No example then lies farther from a chosen one than twice the least radius that any
    choice of this size has.

    Args:
        features: (examples, ...), such as of `features`.
        keep: how many, or a share (float). The time is examples times this.
        start: indices that are chosen already, and among those kept; None draws one.
        seed: of that draw.

    Returns:
        Indices, ascending.

    Raises:
        ConfigError: for more than there are, or a start that is not among them.
        DataError: for features that are not numbers.

    Example:
        >>> k_center(np.array([[0.0], [1.0], [9.0], [4.0]]), 3, start=[0]).tolist()
        [0, 2, 3]

    Source: Sener, Savarese, "Active Learning for Convolutional Neural Networks: A
    Core-Set Approach" (arXiv:1708.00489), algorithm 1.
    """
    found = rows(features, name="features")
    count = count_of(keep, len(found))
    draw = np.random.default_rng(checks.seed(seed))
    chosen = [int(draw.integers(len(found)))] if start is None else _indices(start)
    if not 0 < len(chosen) <= count or not 0 <= min(chosen) <= max(chosen) < len(found):
        raise ConfigError(
            f"start must hold 1 to {count} indices below {len(found)}, each once. "
            f"Received: {len(chosen)} of them."
        )
    found = found - found.mean(axis=0, dtype="float64").astype("float32")
    squares = np.einsum("ij,ij->i", found, found)
    away = np.full(len(found), np.inf, "float32")
    for at in range(count):
        if at == len(chosen):
            chosen.append(int(away.argmax()))
        new = chosen[at]
        # |a - b|^2 as a^2 - 2ab + b^2: one product of a matrix and a vector.
        reach = squares - 2 * (found @ found[new]) + squares[new]
        np.minimum(away, reach, out=away)
        away[new] = -np.inf
    return np.sort(np.array(chosen))


def _indices(start: Any) -> list[int]:
    return list(dict.fromkeys(checks.several(start, checks.whole, name="start")))


def near_duplicates(features: Any, *, distance: float) -> np.ndarray:
    """The examples that lie near an earlier one: keep the others.

    Each example in turn, in the order of the data, is a duplicate if one that was kept
    lies within `distance` of it. So no example vanishes without one like it that stays,
    and no two that stay are near each other.

    Args:
        features: (examples, ...): pixels, or such as of `features`.
        distance: Euclidean, in the units of the features; 0 finds equal ones.

    Returns:
        Indices of the duplicates, ascending; `np.delete(x, found, axis=0)` drops them.

    Raises:
        DataError: for features that are not numbers.

    Example:
        >>> near_duplicates(np.array([[0.0], [0.1], [0.2], [5.0]]), distance=0.15)
        array([1])
    """
    from sklearn.neighbors import NearestNeighbors

    found = rows(features, name="features")
    distance = checks.rate(distance, name="distance")
    if not distance:  # differences of squares would miss some
        return np.setdiff1d(np.arange(len(found)), _first_of_each(found))
    search = NearestNeighbors(radius=distance).fit(found)
    dropped = np.zeros(len(found), bool)
    for at in range(0, len(found), _AT_ONCE):
        near = search.radius_neighbors(
            found[at : at + _AT_ONCE], return_distance=False, sort_results=False
        )
        for i, others in enumerate(near, at):
            if not dropped[i]:
                dropped[others[others > i]] = True
    return np.flatnonzero(dropped)


_AT_ONCE = 1024


def _first_of_each(found: np.ndarray) -> np.ndarray:
    return np.unique(found, axis=0, return_index=True)[1]
