"""Regularizers of transformed weights see what the layers see."""

from collections.abc import Callable
from typing import Any


class EffectiveRegularizer:
    """A weight's regularizer, of the value that the weight's transform gives.

    So the loss of a transformed model is that of the model which `finalize` makes of
    it, and gradients pass through the transform.

    Attributes:
        regularizer: the weight's own.
    """

    def __init__(self, regularizer: Callable[[Any], Any], effective: Callable[[], Any]):
        self.regularizer = regularizer
        self._effective = effective

    def __call__(self, _value: Any) -> Any:
        return self.regularizer(self._effective())


class Regularizers:
    """The regularizers of weights in whose place one variable is trained."""

    def __init__(self) -> None:
        self.parts: list[EffectiveRegularizer] = []

    def __call__(self, value: Any) -> Any:
        return sum(part(value) for part in self.parts)


def own_regularizer(variable: Any) -> Any:
    """The regularizer that the layer gave its weight, or None."""
    given = getattr(variable, "regularizer", None)
    return given.regularizer if isinstance(given, EffectiveRegularizer) else given


def regularize(
    variable: Any, effective: Callable[[], Any], carrier: Any = None
) -> None:
    """Has a weight's regularizer, if it has one, see `effective()`.

    Args:
        variable: the weight.
        effective: what its layer sees of it.
        carrier: a variable that is trained in its place, whose regularizer Keras asks;
            several weights may have the same.
    """
    given = own_regularizer(variable)
    if given is None:
        return
    if carrier is None:
        variable.regularizer = EffectiveRegularizer(given, effective)
        return
    if not isinstance(carrier.regularizer, Regularizers):
        carrier.regularizer = Regularizers()
    carrier.regularizer.parts.append(EffectiveRegularizer(given, effective))


def release(variable: Any) -> None:
    """Gives a weight its own regularizer back."""
    if own_regularizer(variable) is not None:
        variable.regularizer = own_regularizer(variable)
