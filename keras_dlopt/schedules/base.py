"""A schedule: step -> float, for learning rates, sparsity, temperature and bits."""

import keras
from keras import ops

from keras_dlopt.config import Value


class Schedule(Value, keras.optimizers.schedules.LearningRateSchedule):
    """A value that depends on the training step alone.

    One type serves two callers. Inside a train step it is called with a traced step
    (`schedule(step)`, written in `keras.ops`), so it can be given to any optimizer as
    `learning_rate`. Between steps, transforms read it on the host with `value(step)`.

    Subclasses write `__call__`, and `next_due` where the value changes on few steps
    only. The constructor's arguments are kept as attributes of the same names.
    """

    def value(self, step: int) -> float:
        """The schedule at `step`, on the host.

        Args:
            step: number of training steps done so far.
        """
        return float(ops.convert_to_numpy(self(step)))

    def next_due(self, step: int) -> int | None:
        """The first step after `step` at which a reader should look again.

        Args:
            step: number of training steps done so far; -1 before the first.

        Returns:
            A step greater than `step`, or None when the value stays as it is.
        """
        return step + 1
