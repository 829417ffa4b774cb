"""Weights and their state as one replica sees them, and reading and assigning them."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import ops

from keras_dlopt.optimizers._replicas import on_tensorflow
from keras_dlopt.optimizers._slab import SlabSlice


@dataclasses.dataclass
class Cell:
    """One trainable weight and its state, as one replica sees them.

    Attributes:
        index: position among the variables the optimizer was built with.
        weight: the variable, with `assign`.
        slots: the rule's state by name.
        extra: state that no rule sees: the average, the accumulated gradient.
        decay: decoupled weight decay per unit of learning rate; 0 for none.
        multiplier: factor on the learning rate.
        in_slab: whether its state is part of the slab.
        constraint: what the weight is passed through after the step.
    """

    index: int
    weight: Any
    slots: dict[str, Any]
    extra: dict[str, Any]
    decay: float
    multiplier: float
    in_slab: bool
    constraint: Callable[[Any], Any] | None = None

    @property
    def variables(self) -> list[Any]:
        """Everything an update may assign."""
        return [self.weight, *self.slots.values(), *self.extra.values()]


def native(variable: Any) -> Any:
    """The `tf.Variable` behind a Keras variable; elsewhere the variable itself."""
    if not on_tensorflow() or isinstance(variable, SlabSlice):
        return variable
    return variable.value if isinstance(variable, keras.Variable) else variable


def read(variable: Any) -> Any:
    """The variable's value, in the precision that rules compute in."""
    return ops.cast(ops.convert_to_tensor(variable), compute_dtype(variable))


def compute_dtype(variable: Any) -> str:
    """float64 for float64 weights, float32 for all narrower floats."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if not keras.backend.is_float_dtype(dtype):
        return dtype
    return "float64" if dtype == "float64" else "float32"


def assign(variable: Any, value: Any) -> None:
    """Assigns in the variable's own dtype."""
    value = ops.cast(value, keras.backend.standardize_dtype(variable.dtype))
    if on_tensorflow() and not isinstance(variable, keras.Variable):
        variable.assign(value, read_value=False)
    else:
        variable.assign(value)


def choose(
    condition: Any,
    yes: Callable[[], None],
    no: Callable[[], None],
    touched: Iterable[Any],
) -> None:
    """Runs one of two updates, by a condition known only when the graph runs.

    Args:
        condition: boolean scalar tensor.
        yes: assigns variables when the condition holds.
        no: assigns variables when it does not.
        touched: the variables that either assigns.
    """
    if on_tensorflow():
        ops.cond(condition, yes, no)
        return
    # Other backends have no assignment inside a branch: run both, keep one.
    touched = list(touched)
    before = [ops.convert_to_tensor(v) for v in touched]
    no()
    without = [ops.convert_to_tensor(v) for v in touched]
    for variable, value in zip(touched, before, strict=True):
        variable.assign(value)
    yes()
    for variable, value in zip(touched, without, strict=True):
        chosen = ops.where(condition, ops.convert_to_tensor(variable), value)
        variable.assign(ops.cast(chosen, variable.dtype))
