"""What a regression model's outputs say, and what changed. Pure NumPy."""

import dataclasses

import numpy as np

from keras_dlopt.errors import DataError


@dataclasses.dataclass(frozen=True)
class Errors:
    """How far a model's numbers are from the right ones, over all outputs.

    Attributes:
        examples: number of examples.
        mean_absolute_error: mean of |output - target|, in the targets' unit.
        root_mean_squared_error: sqrt of the mean of (output - target)^2.
        largest_error: max of |output - target|.
        explained: 1 - sum (output - target)^2 / sum (target - mean)^2 (R^2), by
            output and averaged; nan where a target is constant.
    """

    examples: int
    mean_absolute_error: float
    root_mean_squared_error: float
    largest_error: float
    explained: float


@dataclasses.dataclass(frozen=True)
class Differences:
    """How far two models' numbers are from each other on the same examples.

    Attributes:
        mean_difference: mean of |second - first|, in the targets' unit.
        largest_difference: max of |second - first|.
        worse: share of examples whose squared error grew.
    """

    mean_difference: float
    largest_difference: float
    worse: float


def errors(outputs: np.ndarray, targets: np.ndarray) -> Errors:
    """Measures a model's outputs against the right numbers.

    Args:
        outputs: one number or an array of them per example.
        targets: as many; (n,) and (n, 1) are the same.

    Raises:
        DataError: if the two do not fit each other, or are not finite numbers.

    Example:
        >>> errors(np.array([[1.0], [4.0]]), np.array([1.0, 2.0])).largest_error
        2.0
    """
    found, wanted = _checked(outputs, targets)
    gap = found - wanted
    spread = ((wanted - wanted.mean(0)) ** 2).sum(0)
    explained = np.full(spread.shape, np.nan)
    np.divide((gap**2).sum(0), spread, out=explained, where=spread > 0)
    return Errors(
        examples=len(found),
        mean_absolute_error=float(np.abs(gap).mean()),
        root_mean_squared_error=float(np.sqrt((gap**2).mean())),
        largest_error=float(np.abs(gap).max()),
        explained=float((1 - explained).mean()),
    )


def differences(
    before: np.ndarray, after: np.ndarray, targets: np.ndarray
) -> Differences:
    """What a second model computes differently from a first.

    Args:
        before: outputs of the first.
        after: outputs of the second.
        targets: the right numbers.

    Raises:
        DataError: if the three do not fit each other, or are not finite numbers.

    Example:
        >>> differences(np.zeros(2), np.array([0.0, 3.0]), np.zeros(2)).worse
        0.5
    """
    first, wanted = _checked(before, targets)
    second, _ = _checked(after, targets)
    gap = np.abs(second - first)
    grown = ((second - wanted) ** 2).sum(-1) > ((first - wanted) ** 2).sum(-1)
    return Differences(
        mean_difference=float(gap.mean()),
        largest_difference=float(gap.max()),
        worse=float(grown.mean()),
    )


def _checked(outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, ...]:
    """Both as float64 rows."""
    outputs, targets = np.asarray(outputs), np.asarray(targets)
    if not {outputs.dtype.kind, targets.dtype.kind} <= set("biuf"):
        raise DataError(
            "Outputs and targets of a regression must be numbers. Received the types "
            f"{outputs.dtype} and {targets.dtype}."
        )
    # The first axis is the examples, also where there is one.
    shapes = [
        s[:-1] if len(s) > 1 and s[-1] == 1 else s
        for s in (outputs.shape, targets.shape)
    ]
    if shapes[0] != shapes[1] or not outputs.size or not outputs.ndim:
        raise DataError(
            f"There are outputs of shape {outputs.shape} and targets of shape "
            f"{targets.shape}; expected one target per output, and one example at "
            "least."
        )
    rows = [a.reshape(len(a), -1).astype(np.float64) for a in (outputs, targets)]
    for name, one in zip(("outputs", "targets"), rows, strict=True):
        if not np.isfinite(one).all():
            raise DataError(
                f"{int((~np.isfinite(one)).any(-1).sum())} of {len(one)} rows of the "
                f"{name} hold values that are not finite. Leave such targets out; if "
                "it is the outputs, the training diverged: lower the learning rate."
            )
    return rows[0], rows[1]
