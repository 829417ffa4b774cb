"""Steps as functions: what is assigned stays inside, and nothing is done in place.

Whether a step is pure is known to the thread that runs it, and to no other.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from keras_dlopt import _compat

_HERE = threading.local()


def on_tensorflow() -> bool:
    """Whether Keras runs on TensorFlow."""
    return bool(keras.backend.backend() == "tensorflow")


@contextlib.contextmanager
def pure() -> Iterator[None]:
    """Inside, this thread uses no fused kernel and assigns in no branch."""
    before = is_pure()
    _HERE.pure = True
    try:
        yield
    finally:
        _HERE.pure = before


def is_pure() -> bool:
    """Whether this thread is inside `pure`."""
    return getattr(_HERE, "pure", False)


def kernels() -> bool:
    """Whether TensorFlow's fused kernels may change variables in place here."""
    return on_tensorflow() and not is_pure()


def pure_call(
    function: Callable[[], Any], held: Sequence[tuple[keras.Variable, Any]]
) -> list[Any]:
    """Calls a function that assigns variables, without touching them (TensorFlow).

    Args:
        function: reads and assigns the variables of `held` only.
        held: pairs of a variable and the value that it has inside.

    Returns:
        What each variable of `held` would hold afterwards.
    """
    scope = _compat.PureScope(held)
    with scope, pure():
        function()
    return scope.values()
