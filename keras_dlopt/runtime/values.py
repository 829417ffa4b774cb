"""Reading, assigning and branching, the same on every backend."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from keras_dlopt._compat import SlabSlice
from keras_dlopt.runtime.pure import kernels, on_tensorflow


class Assignable(Protocol):
    """What a step reads and assigns: a variable of Keras or TensorFlow, or a slice."""

    @property
    def dtype(self) -> Any:
        """Of its value."""

    @property
    def shape(self) -> Any:
        """Of its value."""

    def assign(self, value: Any, /) -> Any:
        """Puts a value in place of the old one."""


def native(variable: Assignable) -> Any:
    """The `tf.Variable` behind a Keras variable; elsewhere the variable itself."""
    if not on_tensorflow() or isinstance(variable, SlabSlice):
        return variable  # a slice has no `tf.Variable` of its own; its value is cut out
    return variable.value if isinstance(variable, keras.Variable) else variable


def value(variable: Assignable) -> Any:
    """The variable's value now, a tensor that later assignments leave alone."""
    if not on_tensorflow():
        return ops.convert_to_tensor(variable)
    import tensorflow as tf

    return tf.convert_to_tensor(native(variable))


def read(variable: Assignable) -> Any:
    """The variable in the precision that update rules compute in.

    On TensorFlow a variable of that precision is read where it is used: assign last.
    """
    return ops.cast(ops.convert_to_tensor(native(variable)), compute_dtype(variable))


def compute_dtype(variable: Assignable) -> str:
    """float64 for float64 weights, float32 for all narrower floats."""
    dtype = str(keras.backend.standardize_dtype(variable.dtype))
    if not keras.backend.is_float_dtype(dtype):
        return dtype
    return "float64" if dtype == "float64" else "float32"


def assign(variable: Assignable, new: Any) -> None:
    """Assigns in the variable's own dtype."""
    new = ops.cast(new, keras.backend.standardize_dtype(variable.dtype))
    if on_tensorflow() and not isinstance(variable, keras.Variable):
        held: Any = variable  # of TensorFlow, which need not read what it wrote
        held.assign(new, read_value=False)
    else:
        variable.assign(new)


def to_numpy(variable: Any) -> np.ndarray:
    """The value of a variable or tensor, mirrored or not, on the host."""
    # As a tensor: a mirrored variable of no dimension is no array to NumPy.
    held = value(variable) if isinstance(variable, keras.Variable) else variable
    return np.asarray(ops.convert_to_numpy(held))


def choose(
    condition: Any,
    yes: Callable[[], None],
    no: Callable[[], None],
    touched: Iterable[Assignable],
) -> None:
    """Runs one of two updates, by a condition known only when the graph runs.

    Args:
        condition: boolean scalar tensor.
        yes: assigns variables when the condition holds.
        no: assigns variables when it does not.
        touched: the variables that either assigns.
    """
    if kernels():
        ops.cond(condition, yes, no)
        return
    # No assignment inside a branch elsewhere: run both, keep one.
    touched = list(touched)
    before = [value(v) for v in touched]
    no()
    without = [value(v) for v in touched]
    for variable, old in zip(touched, before, strict=True):
        assign(variable, old)
    yes()
    for variable, other in zip(touched, without, strict=True):
        assign(variable, ops.where(condition, value(variable), other))
