"""K-means on numbers: sorted once, then a search instead of a table of distances."""

import numpy as np


def nearest(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The index of the nearest centroid of each value; of two as near, the lower one.

    Args:
        values: numbers, any shape.
        centroids: in any order.

    Example:
        >>> nearest(np.array([0.1, 0.9]), np.array([1.0, 0.0])).tolist()
        [1, 0]
    """
    order = np.argsort(centroids, kind="stable")
    rising = np.asarray(centroids, "float64")[order]
    middles = (rising[1:] + rising[:-1]) / 2
    return order[np.searchsorted(middles, values)]


def kmeans(values: np.ndarray, centroids: np.ndarray, *, steps: int) -> np.ndarray:
    """Lloyd's algorithm on numbers: O(k log n) a step once they are sorted.

    Args:
        values: the numbers, sorted ascending.
        centroids: starting points, ascending.
        steps: at most this many; it stops earlier when nothing moves.

    Returns:
        The centroids, ascending; one whose cluster is empty stays where it is.

    Example:
        >>> kmeans(np.array([0.0, 1.0, 5.0]), np.array([0.0, 5.0]), steps=9).tolist()
        [0.5, 5.0]
    """
    sums = np.concatenate([[0.0], np.cumsum(values, dtype="float64")])
    centroids = np.asarray(centroids, "float64")
    for _ in range(steps):
        middles = (centroids[1:] + centroids[:-1]) / 2
        cuts = np.searchsorted(values, middles)
        edges = np.concatenate([[0], cuts, [len(values)]])
        counts, totals = np.diff(edges), np.diff(sums[edges])
        moved = np.where(counts > 0, totals / np.maximum(counts, 1), centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids
