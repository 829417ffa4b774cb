"""The only file that touches undocumented Keras. Each use has a canary test.

A canary (`tests/test_compat.py`) that fails after a Keras upgrade says which function
here to mend; nothing else in the package needs to change.
"""

import contextlib
import math
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from keras_dlopt.errors import FormatError

_LOCK = threading.RLock()
_SLACK = 4096  # elements for counters and seeds that are in no file


class WeightOverlay(keras.StatelessScope):
    """Substitutes values for some variables; everything else passes through.

    `keras.StatelessScope` stops all writes and, unless told otherwise, all losses. This
    scope stops nothing: reads of other variables fall through to the enclosing scope,
    writes and losses made inside are collected, and `commit` hands them on after the
    scope was left. So `add_loss`, regularizers, BatchNorm statistics and dropout seeds
    behave as without it.

    Relies on: `StatelessScope.state_mapping`, `.losses`, `.original_scope`, and the
    hooks `get_current_value`, `add_update` that Keras variables call.

    Args:
        values: pairs of a variable and the tensor to read in its place.
    """

    def __init__(self, values: Iterable[tuple[Any, Any]]):
        super().__init__(
            state_mapping=list(values), collect_losses=True, initialize_variables=False
        )
        self._computed = set(self.state_mapping)
        self._written: dict[int, Any] = {}

    def get_current_value(self, variable):
        value = self.state_mapping.get(id(variable))
        if value is None and self.original_scope is not None:
            value = self.original_scope.get_current_value(variable)
        return value

    def add_update(self, update):
        variable, value = update
        if id(variable) in self._computed:
            raise RuntimeError(
                f"The variable {variable.path!r} is computed by a transform and cannot "
                "be assigned inside call(). Leave it out of the recipe, or move the "
                "assignment out of call()."
            )
        self.state_mapping[id(variable)] = value
        self._written[id(variable)] = variable

    def commit(self, layer: keras.layers.Layer) -> None:
        """Assigns what was written and adds the collected losses to `layer`.

        Call it after leaving the scope.
        """
        for key, variable in self._written.items():
            variable.assign(self.state_mapping[key])
        for loss in self.losses:
            layer.add_loss(loss)


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers that `layer` holds directly, in the order of their creation.

    Relies on: `Layer._flatten_layers(include_self, recursive)`.
    """
    return [
        sub
        for sub in layer._flatten_layers(include_self=False, recursive=False)
        if isinstance(sub, keras.layers.Layer)
    ]


def in_xla() -> bool:
    """Whether TensorFlow is tracing a function that XLA will compile.

    Relies on: `tensorflow.python.ops.control_flow_util.GraphOrParentsInXlaContext`.
    """
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util

    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)


@contextlib.contextmanager
def limited_variables(elements: int) -> Iterator[None]:
    """Inside, this thread can create Keras variables of so many elements in all.

    A file may describe `Dense(10**12)` in a few bytes. Its weights are in the file
    too, so a model that asks for more elements than the file has is not its model.

    Relies on: `keras.Variable` subclasses its backend's class and takes
    `(initializer, shape, ...)`; the constructor is replaced while a file is read.

    Raises:
        FormatError: out of the constructor of the variable that is too much.
    """
    left, thread = elements + _SLACK, threading.get_ident()
    # keras.Variable inherits its constructor from the backend's class.
    with _LOCK:
        outer = vars(keras.Variable).get("__init__")
        original = keras.Variable.__init__

        def checked(self, initializer, shape=None, *args, **kwargs):
            nonlocal left
            if threading.get_ident() == thread:
                wanted = tuple(shape or getattr(initializer, "shape", None) or ())
                left -= math.prod(wanted)
                if left < 0:
                    raise FormatError(
                        f"Refused: the model described in the file needs a variable "
                        f"of shape {wanted}, more than the weights stored "
                        f"in it ({elements} elements). Restore the file from a copy "
                        "or save it again."
                    )
            original(self, initializer, shape, *args, **kwargs)

        keras.Variable.__init__ = checked
        try:
            yield
        finally:
            if outer is None:
                del keras.Variable.__init__
            else:  # a custom class that loads a file while it is loaded itself
                keras.Variable.__init__ = outer


def unnamed_operations() -> Iterator[tuple[str, type]]:
    """The classes that Functional models are made of and that have no public name.

    Those are Functional itself and the nodes that `keras.ops` leaves in a graph. Keras
    writes the module they live in, so they are told by it; nothing is imported.

    Relies on: the modules `keras.src.ops` and `keras.src.models`.

    Returns:
        Pairs of a short name and a class.
    """
    for cls in _subclasses(keras.Operation, {}):
        home = cls.__module__.split(".")
        if home[:3] == ["keras", "src", "ops"]:
            yield f"{'.'.join(home[2:])}.{cls.__name__}", cls
        elif home[:3] == ["keras", "src", "models"] and cls.__name__ == "Functional":
            yield "Functional", cls


def _subclasses(cls: Any, found: dict[type, None]) -> dict[type, None]:
    sub: type
    for sub in cls.__subclasses__():
        if sub not in found:
            found[sub] = None
            _subclasses(sub, found)
    return found
