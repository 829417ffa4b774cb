"""How well the outputs of a file and of a model agree."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well two sets of outputs agree.

    Attributes:
        examples: number of them.
        top1: share whose largest output is the same.
        top1_clear: the same share among examples whose two largest outputs are more
            than one level apart; 1.0 if there are none.
        ties: examples with a margin of at most one level.
        largest_lsb: largest difference, in levels of the output's grid.
    """

    examples: int
    top1: float
    top1_clear: float
    ties: int
    largest_lsb: int


def agreement(expected: np.ndarray, got: np.ndarray, *, lsb: float) -> Agreement:
    """Compares outputs of shape (examples, ...) on a grid of step `lsb`.

    Example:
        >>> a = np.array([[0.0, 1.0], [0.5, 0.25]])
        >>> agreement(a, a + 0.25, lsb=0.25).largest_lsb
        1
    """
    expected = expected.reshape(len(expected), -1)
    got = got.reshape(len(got), -1)
    steps = np.rint(np.abs(expected - got) / lsb)
    same = expected.argmax(1) == got.argmax(1)
    ordered = np.sort(expected, axis=1)
    margin = np.full(len(expected), np.inf)
    if expected.shape[1] > 1:
        margin = np.rint((ordered[:, -1] - ordered[:, -2]) / lsb)
    clear = margin > 1
    return Agreement(
        examples=len(expected),
        top1=float(same.mean()),
        top1_clear=float(same[clear].mean()) if clear.any() else 1.0,
        ties=int((~clear).sum()),
        largest_lsb=int(steps.max(initial=0)),
    )


def worst(parts: list[Agreement]) -> Agreement:
    """The agreement of several outputs taken together: the worst of each figure."""
    return Agreement(
        examples=parts[0].examples,
        top1=min(p.top1 for p in parts),
        top1_clear=min(p.top1_clear for p in parts),
        ties=max(p.ties for p in parts),
        largest_lsb=max(p.largest_lsb for p in parts),
    )
