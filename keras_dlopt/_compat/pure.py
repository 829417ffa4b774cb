"""Values in place of `tf.Variable`s, for optimizers that write to those directly."""

from collections.abc import Iterable
from typing import Any

import keras

from keras_dlopt.errors import ModelError


class StandIn:
    """Computes as the tensor that it holds, where Keras expects a number or variable.

    Attributes:
        tensor: what it holds now.
    """

    tensor: Any

    def __add__(self, other):
        return self.tensor + other

    def __radd__(self, other):
        return other + self.tensor

    def __sub__(self, other):
        return self.tensor - other

    def __rsub__(self, other):
        return other - self.tensor

    def __mul__(self, other):
        return self.tensor * other

    __rmul__ = __mul__

    def __truediv__(self, other):
        return self.tensor / other


class PureVariable(StandIn):
    """The value of one variable inside a pure function, with a variable's methods.

    Relies on: Keras' optimizers use `variable.value`, its operators and `assign`
    methods, and find slots by `tf.Variable._unique_id`.
    """

    def __init__(self, variable: Any, value: Any):
        import tensorflow as tf

        self._variable = variable
        self._graph = tf.compat.v1.get_default_graph()
        self.tensor = tf.convert_to_tensor(value)
        self.dtype, self.shape = variable.dtype, variable.shape

    def __tf_tensor__(self, dtype=None, name=None):
        import tensorflow as tf

        return tf.convert_to_tensor(self.tensor, dtype=dtype, name=name)

    def assign(self, value: Any, **_: Any) -> Any:
        """Keeps `value`."""
        import tensorflow as tf

        if tf.compat.v1.get_default_graph() is not self._graph:
            raise ModelError(
                f"The variable {self._variable.name!r} is assigned in a branch, which "
                "a pure step on the TensorFlow backend cannot follow. Keras' own "
                "optimizers do that for gradient_accumulation_steps and "
                "ema_overwrite_frequency: use those of keras_dlopt.optimizers, or the "
                "JAX backend."
            )
        self.tensor = tf.cast(value, self.dtype)
        return self.tensor

    def assign_add(self, value: Any, **_: Any) -> Any:
        """Adds `value`."""
        return self.assign(self + value)

    def assign_sub(self, value: Any, **_: Any) -> Any:
        """Subtracts `value`."""
        return self.assign(self - value)

    def read_value(self) -> Any:
        """The present value."""
        return self.tensor

    value = read_value

    def numpy(self) -> Any:
        """The present value, where it is known."""
        return self.tensor.numpy()

    @property
    def _unique_id(self) -> str:
        return self._variable._unique_id

    def __getitem__(self, key):
        return self.tensor[key]


class PureScope(keras.StatelessScope):
    """Reads and writes of some variables stay inside; nothing else may be written.

    Relies on: the hooks `get_current_value` and `add_update` that Keras variables call.

    Args:
        held: pairs of a variable and the value that it has at first.
    """

    def __init__(self, held: Iterable[tuple[keras.Variable, Any]]):
        super().__init__()
        self._held = {id(v): PureVariable(v.value, value) for v, value in held}

    def get_current_value(self, variable):
        return self._held.get(id(variable))

    def add_update(self, update):
        variable, value = update
        if id(variable) not in self._held:
            raise ModelError(
                f"The optimizer assigns {variable.path!r}, which is none of its "
                "variables, so the step is not a function of its state."
            )
        self._held[id(variable)].assign(value)

    def values(self) -> list[Any]:
        """What the variables hold now, in the order in which they were given."""
        return [held.tensor for held in self._held.values()]
