"""What files of models rest on: names of classes, and variables that they ask for."""

import contextlib
import io
import math
import threading
from collections.abc import Collection, Iterator
from typing import Any

import keras

from keras_dlopt.errors import FormatError

_LOCK = threading.RLock()
_SLACK = 4096  # elements for counters and seeds that are in no file
_DRAWS = frozenset(
    value
    for value in vars(keras.initializers).values()
    if isinstance(value, type) and value.__module__.endswith(".random_initializers")
)

Drawn = list[tuple[keras.Variable, Any]]


@contextlib.contextmanager
def limited_variables(elements: int, drawn: Drawn | None = None) -> Iterator[None]:
    """Inside, this thread can create Keras variables of so many elements in all.

    With a list `drawn` random numbers are not drawn: most are replaced by those of the
    file. What the variables are is open until `draw` gives those in the list their
    numbers; memory that is not written is not taken either.

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
            mine = drawn is not None and threading.get_ident() == thread
            if drawn is not None and mine and type(initializer) in _DRAWS:
                original(self, _unwritten, shape, *args, **kwargs)
                drawn.append((self, initializer))
            else:
                original(self, initializer, shape, *args, **kwargs)

        keras.Variable.__init__ = checked
        try:
            yield
        finally:
            if outer is None:
                del keras.Variable.__init__
            else:  # a custom class that loads a file while it is loaded itself
                keras.Variable.__init__ = outer


def _unwritten(shape: Any, dtype: Any = None) -> Any:
    """A tensor of any values."""
    if keras.backend.backend() != "tensorflow":
        return keras.ops.zeros(shape, dtype)
    import tensorflow as tf

    return tf.raw_ops.Empty(shape=shape, dtype=dtype or keras.config.floatx())


def draw(drawn: Drawn, *, replaced: Collection[keras.Variable]) -> None:
    """Gives variables the random numbers that `limited_variables` did not draw.

    Args:
        drawn: the list it was given.
        replaced: variables that get other values anyway.
    """
    known = {id(v) for v in replaced}
    for variable, initializer in drawn:
        if id(variable) not in known:
            variable.assign(initializer(variable.shape, dtype=variable.dtype))


class _Memory(io.BytesIO):
    """A file in memory that Keras takes for the path of a weight file."""

    def __fspath__(self) -> str:
        return "memory.weights.h5"

    __str__ = __fspath__


def weights_file(model: keras.Model) -> bytes:
    """What `model.save_weights` would write, without a disk that can be full.

    HDF5 ends the process, with no Python error, where a file of its own cannot grow.

    Relies on: `save_weights` looks at the name of the path, and hands a `BytesIO` on to
    h5py, which writes into it.
    """
    memory = _Memory()
    model.save_weights(memory)
    return memory.getvalue()


def unnamed_operations() -> Iterator[tuple[str, type]]:
    """The classes that Keras' models are made of and that have no public name.

    Those are Functional itself, the nodes that `keras.ops` leaves in a graph, and
    layers of `keras.applications` (ConvNeXt's). Keras writes the module they live in,
    so they are told by it; nothing is imported.

    Relies on: `ops`, `models` and `applications` in `keras.src`.

    Returns:
        Pairs of a short name and a class.
    """
    for cls in _subclasses(keras.Operation, {}):
        home = cls.__module__.split(".")
        if home[:2] == ["keras", "src"] and home[2] in ("ops", "applications"):
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
