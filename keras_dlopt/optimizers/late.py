"""Weights that begin to train later than others: whose steps are counted how."""

from typing import Any

import keras

from keras_dlopt.optimizers._engine import Engine

HORIZON = 2_000  # steps within which the largest one lies for all usual betas


def engine(optimizer: Any) -> Engine | None:
    """The optimizer of this package, also inside a wrapper of Keras'; else None.

    By its `rest` and `go_on` the steps of weights that wait are not counted for them,
    so that the bias correction is that of their own number of steps.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return inner if isinstance(inner, Engine) else None


def largest_step(optimizer: Any) -> float:
    """How much larger than a first step Keras' Adam makes those of a late weight.

    Its moments are those of n gradients, and are taken for those of many: the ratio is
    the largest (1 - beta_1^n) / sqrt(1 - beta_2^n). 1 for what corrects no bias.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    kinds = (keras.optimizers.Adam, keras.optimizers.Nadam)
    if not isinstance(inner, kinds):
        return 1.0
    first, second = inner.beta_1, inner.beta_2
    return max((1 - first**n) / (1 - second**n) ** 0.5 for n in range(1, HORIZON))
