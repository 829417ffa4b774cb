"""A schedule: step -> float, for learning rates, sparsity, temperature and bits."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.config import Value


class Schedule(Value, keras.optimizers.schedules.LearningRateSchedule):
    """A value that depends on the training step alone.

    One type serves two callers. Inside a train step it is called with a traced step
    (`schedule(step)`), so it can be given to any optimizer as `learning_rate`. Between
    steps, transforms read it on the host with `value(step)`. Both come from one
    formula.

    Subclasses write `formula`, and `next_due` where the value changes on few steps
    only. The constructor's arguments are kept as attributes of the same names.
    """

    def formula(self, step: Any, xp: Any) -> Any:
        """The value at `step`, written with the functions of `xp`.

        Args:
            step: a float32 tensor, or a float64 on the host.
            xp: `keras.ops`, or NumPy, which offers the same functions.
        """
        raise TypeError(f"{type(self).__name__} must define `formula`.")

    def __call__(self, step: Any) -> Any:
        return ops.cast(self.formula(ops.cast(step, "float32"), ops), "float32")

    def value(self, step: int) -> float:
        """The schedule at `step`, on the host, in float64.

        Args:
            step: number of training steps done so far.
        """
        if type(self).__call__ is not Schedule.__call__:  # one without a formula
            return float(ops.convert_to_numpy(self(step)))
        return float(self.formula(np.float64(step), np))

    def next_due(self, step: int) -> int | None:
        """The first step after `step` at which a reader should look again.

        Args:
            step: number of training steps done so far; -1 before the first.

        Returns:
            A step greater than `step`, or None when the value stays as it is.
        """
        return step + 1


SHAPES = ("linear", "cosine", "sqrt")


def descent(progress: Any, shape: str | float, xp: Any) -> Any:
    """A curve from 1 at progress 0 to 0 at progress 1.

    Args:
        progress: in [0, 1].
        shape: one of `SHAPES`, or the power p of (1 - progress)^p.
        xp: `keras.ops` or NumPy.
    """
    if shape == "cosine":
        return 0.5 * (1.0 + xp.cos(math.pi * progress))
    if shape == "sqrt":
        return 1.0 - xp.sqrt(progress)
    if shape == "linear":
        return 1.0 - progress
    # Not xp.power: NumPy's is vectorized, and its last bit is not the same everywhere.
    return (1.0 - progress) ** shape


def next_on_grid(step: int, begin: int, end: int | None, every: int) -> int | None:
    """The first of begin, begin + every, ... after `step` and not after `end`."""
    if step < begin:
        return begin
    due = begin + ((step - begin) // every + 1) * every
    return due if end is None or due <= end else None
