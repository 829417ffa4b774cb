"""Masks from scores."""

from typing import Literal

import numpy as np

Ties = Literal["index", "keep"]
# Below every score of a weight that is still there.
REMOVED = -1.0


def keep_mask(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """Ones for the weights to keep, zeros for the rest.

    Exactly round(sparsity * n) entries are zero: those with the smallest scores, and of
    equal scores those with the smallest index.

    Args:
        scores: importance of each weight, any shape.
        sparsity: share of zeros, in [0, 1).
    """
    return mask_without(scores, round(sparsity * scores.size))


def mask_without(scores: np.ndarray, zeros: int) -> np.ndarray:
    """`keep_mask` for a number of zeros instead of a share."""
    mask = np.ones(scores.size, "float32")
    flat = scores.ravel()
    if 0 < zeros < scores.size:
        # One pass finds the threshold; only ties with it need an order.
        threshold = np.partition(flat, zeros - 1)[zeros - 1]
        mask[flat < threshold] = 0.0
        ties = np.flatnonzero(flat == threshold)
        mask[ties[: zeros - int((flat < threshold).sum())]] = 0.0
    elif zeros:
        mask[:] = 0.0
    return mask.reshape(scores.shape)


def mask_from_threshold(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """The mask as TensorFlow Model Optimization computes it, in float32.

    k = round(n (1 - sparsity)), half to even; the threshold is the k-th largest score,
    and every score that reaches it stays: ties are kept, so that there may be fewer
    zeros than asked for, and at least one weight stays.
    """
    size = np.float32(scores.size)
    keep = int(np.round(size * (np.float32(1) - np.float32(sparsity))))
    place = scores.size - max(keep, 1)
    threshold = np.partition(scores.ravel(), place)[place]
    return (scores >= threshold).astype("float32")
