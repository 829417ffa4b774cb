"""Running means, the building block of most rules."""

import math
from typing import Any

from keras import ops


def mean(old: Any, new: Any, beta: Any) -> Any:
    """The running mean that keeps the share `beta` of the old value."""
    return beta * old + (1 - beta) * new


def unbias(value: Any, beta: float, step: Any) -> Any:
    """A running mean that started at 0, divided by the weights it has seen."""
    return value / seen(beta, step)


def seen(beta: float, step: Any) -> Any:
    """1 - beta^step, without the cancellation that float32 suffers for beta near 1."""
    if beta == 0.0:
        return ops.ones_like(step)
    return -ops.expm1(step * math.log(beta))
