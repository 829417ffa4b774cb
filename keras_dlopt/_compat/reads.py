"""Reads of variables by code that is neither Keras' nor ours."""

import contextlib
import functools
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

# What stands between a read and the code that asks for it.
_BETWEEN = (
    os.sep + os.path.join("keras", "src", "backend", ""),
    os.sep + os.path.join("keras", "src", "ops", ""),
    os.sep + os.path.join("tensorflow", "python", ""),
)
_OURS = (
    str(pathlib.Path(keras.__file__).parent) + os.sep,
    str(pathlib.Path(__file__).parents[1]) + os.sep,
)
# A gradient's source, and a value to write: no read of what the variable holds.
_NO_READ = ("handle", "assign", "assign_add", "assign_sub")
_LOCK = threading.RLock()
_HEARD: dict[int, list[Callable[[Any], None]]] = {}


@contextlib.contextmanager
def heard(variables: Iterable[Any], hear: Callable[[Any], None]) -> Iterator[None]:
    """Inside, `hear(variable)` is told of each read by other code than ours and Keras'.

    Relies on: all reads of a Keras variable go through its property `value`, and what
    `__init__` made stays valid for a subclass; gradients ask for `handle`. The files
    of Keras and TensorFlow that convert a variable to a tensor, and `keras.ops`.
    """
    watched = list(variables)
    with _LOCK:
        for variable in watched:
            if not _HEARD.setdefault(id(variable), []):
                variable.__class__ = _loud(type(variable))  # type: ignore[arg-type]
            _HEARD[id(variable)].append(hear)
    try:
        yield
    finally:
        with _LOCK:
            for variable in watched:
                _HEARD[id(variable)].remove(hear)
                if not _HEARD[id(variable)]:
                    del _HEARD[id(variable)]
                    variable.__class__ = type(variable).__base__


@functools.cache
def _loud(cls: type) -> type:
    def value(self):
        if _by_others():
            for hear in _HEARD.get(id(self), ()):
                hear(self)
        return cls.value.__get__(self)  # type: ignore[attr-defined]

    body = {"value": property(value), "__module__": cls.__module__}
    return type(cls.__name__, (cls,), body)


def _by_others() -> bool:
    frame: Any = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if not any(part in path for part in _BETWEEN):
            return not path.startswith(_OURS)
        if frame.f_code.co_name in _NO_READ:
            return False
        frame = frame.f_back
    return False
