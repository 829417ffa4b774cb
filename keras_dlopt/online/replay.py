"""How a memory's samples are learned again."""

from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.config import Value, frozen


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class Replay(Value):
    """Each batch of new samples is learned together with rows from the memory.

    A step's loss is the compiled one over new and kept rows together. With `weight` it
    is the mean over the new rows plus `weight` times the mean over the kept ones; the
    model's loss then gets sample weights.

    Args:
        rows: kept samples in each step.
        steps: steps a batch of new samples; each draws anew. All are one call.
        weight: of the kept rows' labels; None for rows that all weigh the same, 0 for
            the new ones' labels alone.
        augment: a Keras layer that changes the inputs of each step, new and kept, such
            as `keras.layers.RandomTranslation(0.1, 0.1)`; None for none.

    Raises:
        ConfigError: for numbers out of range, and anything but a layer.

    Example:
        >>> Replay(rows=64, steps=2)
        Replay(rows=64, steps=2)
    """

    rows: int = 32
    steps: int = 1
    weight: float | None = None
    augment: Any = None

    def __post_init__(self):
        weight = checks.optional(checks.rate, self.weight, name="weight")
        if self.augment is not None:
            checks.instance(
                self.augment,
                keras.layers.Layer,
                name="augment",
                wanted="a Keras layer, such as RandomTranslation(0.1, 0.1)",
            )
        self.keep(
            rows=checks.count(self.rows, name="rows"),
            steps=checks.count(self.steps, name="steps"),
            weight=weight,
        )
