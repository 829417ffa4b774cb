"""Runs an optimizer of the TensorFlow backend without touching its variables.

Keras' optimizers write to `tf.Variable`s directly there, so `stateless_apply` fails.
Inside `apply` below, reading a Keras variable gives a `Cell`: an object that looks like
the `tf.Variable` and keeps what is assigned to it.
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras

from keras_dlopt.errors import ModelError
from keras_dlopt.optimizers import Optimizer, _cells, _updates


class Cell:
    """The value of one variable inside a pure function, with a variable's methods."""

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
        # The key by which Keras finds an optimizer's slots.
        return self._variable._unique_id

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

    def __getitem__(self, key):
        return self.tensor[key]


class _Cells(keras.StatelessScope):
    """Reads and writes of some variables go to cells; nothing else may be written."""

    def __init__(self, cells: dict[int, Cell]):
        super().__init__()
        self._cells = cells

    def get_current_value(self, variable):
        return self._cells.get(id(variable))

    def add_update(self, update):
        variable, value = update
        if id(variable) not in self._cells:
            raise ModelError(
                f"The optimizer assigns {variable.path!r}, which is none of its "
                "variables, so the step is not a function of its state."
            )
        self._cells[id(variable)].assign(value)


def apply(
    optimizer: Any, variables: Any, state: Any, gradients: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """One update by an optimizer made with `pure_copy`.

    Args:
        optimizer: its variables keep their values.
        variables: the `State` of variables that `state` holds the values of.
        state: the `State` before the update.
        gradients: one a trainable variable.

    Returns:
        The new values of the trainable and of the optimizer's variables.
    """
    pairs = [
        *zip(variables.trainable, state.trainable, strict=True),
        *zip(variables.optimizer, state.optimizer, strict=True),
    ]
    cells = {id(v): Cell(v.value, value) for v, value in pairs}
    with _Cells(cells), _without_kernels():
        optimizer.apply(list(gradients), variables.trainable)
    after = [cells[id(v)].tensor for v, _ in pairs]
    count = len(variables.trainable)
    return after[:count], after[count:]


def pure_copy(optimizer: Any, trainable: Sequence[Any]) -> Any:
    """A copy of an optimizer, with its state, that `apply` can run.

    The optimizers of this package join the state of small weights in one flat variable;
    the copy keeps them apart.
    """
    copy = type(optimizer).from_config(optimizer.get_config())
    for part in _parts(copy):
        part._plan_slab = lambda variables: None  # type: ignore[method-assign]
    copy.build(list(trainable))
    for new, old in zip(copy.variables, optimizer.variables, strict=True):
        new.assign(old)
    return copy


def _parts(optimizer: Any) -> Iterator[Optimizer]:
    """The optimizers of this package in an optimizer: itself, and what it wraps."""
    if isinstance(optimizer, Optimizer):
        yield optimizer
        for held in list(vars(optimizer).values()):
            if isinstance(held, Optimizer):
                yield from _parts(held)


@contextlib.contextmanager
def _without_kernels() -> Iterator[None]:
    """The package's optimizers use no fused kernel and assign in no branch.

    They branch through one function, `choose`, which each of their modules imports.
    """
    replaced: list[tuple[Any, str, Any]] = [
        (_updates, "on_tensorflow", lambda: False),
        *(
            (module, "choose", _choose)
            for name, module in list(sys.modules.items())
            if name.startswith(_cells.__package__)
            and getattr(module, "choose", None) is _cells.choose
        ),
    ]
    before = [getattr(module, name) for module, name, _ in replaced]
    try:
        for module, name, function in replaced:
            setattr(module, name, function)
        yield
    finally:
        for (module, name, _), function in zip(replaced, before, strict=True):
            setattr(module, name, function)


def _choose(
    condition: Any,
    yes: Callable[[], None],
    no: Callable[[], None],
    touched: Iterable[Any],
) -> None:
    """Runs both updates and keeps one, by a condition that the program computes."""
    import tensorflow as tf

    cells = list(touched)
    before = [cell.tensor for cell in cells]
    no()
    without = [cell.tensor for cell in cells]
    for cell, tensor in zip(cells, before, strict=True):
        cell.tensor = tensor
    yes()
    for cell, tensor in zip(cells, without, strict=True):
        cell.tensor = tf.where(condition, cell.tensor, tensor)
