"""The examples whose label changed: those to look at first."""

import dataclasses
from typing import Any

import numpy as np

from keras_dlopt.report.quality import labels_of, probabilities

SHOWN = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Flip:
    """An example that two classifiers label differently.

    Attributes:
        index: its place in the data.
        label: the right one.
        before: the first model's.
        after: the second's.
        confidence: the second's probability for its label.
        image: 8 bits a channel, (height, width, 1 or 3); None for other inputs.
    """

    index: int
    label: int
    before: int
    after: int
    confidence: float
    image: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the image."""
        return {k: v for k, v in vars(self).items() if k != "image"}


def flips(
    before: np.ndarray,
    after: np.ndarray,
    labels: np.ndarray,
    *,
    from_logits: bool | None = None,
    images: np.ndarray | None = None,
) -> tuple[Flip, ...]:
    """At most 12 examples whose label changed: newly wrong first, the surest first.

    Args:
        before: outputs of the first classifier, as for `changes`.
        after: outputs of the second.
        labels: integers of shape (n,) or one-hot rows.
        from_logits: as for `changes`.
        images: of the first so many examples, in any range of values.

    Example:
        >>> one, two = np.eye(2)[[0, 1]], np.eye(2)[[0, 0]]
        >>> flips(one, two, np.array([0, 1]))[0].index
        1
    """
    p, q = (probabilities(o, from_logits=from_logits) for o in (before, after))
    one, two, y = p.argmax(-1), q.argmax(-1), labels_of(labels)
    changed = np.flatnonzero(one != two)
    sure = q.max(-1)
    order = np.lexsort((-sure[changed], one[changed] != y[changed]))
    eight = None if images is None else _eight_bits(images)
    return tuple(
        Flip(
            index=int(i),
            label=int(y[i]),
            before=int(one[i]),
            after=int(two[i]),
            confidence=float(sure[i]),
            image=eight[i] if eight is not None and i < len(eight) else None,
        )
        for i in changed[order][:SHOWN]
    )


def _eight_bits(images: np.ndarray) -> np.ndarray:
    x = images.astype(np.float64)
    low, high = x.min(), x.max()
    return np.asarray(np.rint(255 * (x - low) / (high - low or 1.0)), np.uint8)
