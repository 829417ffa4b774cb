"""Weights that begin to train later than others: whose steps are counted how."""

from typing import Any

import keras

from keras_dlopt.optimizers._engine import Engine

HORIZON = 2_000  # steps within which the largest one lies for all usual betas


def begin_late(optimizer: Any, variables: list[Any], step: int) -> bool:
    """Has an optimizer count the steps of weights from a later one.

    Their state is that of a weight that has had no gradient, so the bias correction
    must be that of a first step. What is traced already keeps its count: trace anew.

    Args:
        optimizer: built, of this package, or a wrapper of Keras' around one.
        variables: that it was built with.
        step: updates so far when they begin.

    Returns:
        Whether it can; False for Keras' own.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not isinstance(inner, Engine):
        return False
    inner.begin_late(variables, step)
    return True


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
