"""Calls that are traced or computed a second time, and what they would remember."""

import contextlib
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from keras_dlopt._compat.calls import changed

# What stands between a read and the code that asks for it.
_CONVERSION = (
    os.sep + os.path.join("backend", "common", ""),
    os.sep + os.path.join("backend", "tensorflow", ""),
    os.sep + os.path.join("keras_dlopt", "_compat", ""),
    os.sep + os.path.join("tensorflow", "python", ""),
)


def untraced_call(layer: keras.Operation) -> Callable[..., Any] | None:
    """The Python function behind a `call` under `@tf.function`; None for any other.

    A trace of its own keeps the values of one moment. In a graph, conditions on tensors
    become part of it, as in the decorated function.

    Relies on: TensorFlow's `Function.python_function`, and that methods of a class are
    found there unbound, in an instance's attribute bound.
    """
    own = vars(layer).get("call")
    call = inspect.getattr_static(type(layer), "call", None) if own is None else own
    function = getattr(call, "python_function", None)
    if function is None:
        return None
    bound = own is not None

    def plain(*args: Any, **kwargs: Any) -> Any:
        import tensorflow as tf

        run = function
        if not tf.executing_eagerly() and not bound:
            run = tf.autograph.to_graph(function)
        return run(*args, **kwargs) if bound else run(layer, *args, **kwargs)

    return functools.wraps(function)(plain)


def recomputes(layer: keras.Operation) -> bool:
    """Whether a layer was made under `keras.RematScope`.

    Relies on: `Operation._remat_mode`, None outside of such a scope.
    """
    return getattr(layer, "_remat_mode", None) is not None


@contextlib.contextmanager
def without_recomputing(layers: Iterable[keras.layers.Layer]) -> Iterator[None]:
    """Inside, layers made under `keras.RematScope` keep their activations.

    Relies on: layers read `_remat_mode` at each call.
    """
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(changed(layer, _remat_mode=None))
        yield


def kept_by(graph: Any) -> str | None:
    """What would keep or lose the value that is read now; None if nothing does.

    Args:
        graph: `graph_now()` of the scope that the value belongs to.

    Relies on: the files of TensorFlow in which `tf.function`, `tf.vectorized_map`,
    `tf.custom_gradient` and `tf.recompute_grad` call the function they are given.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    user = False
    frame: Any = sys._getframe(1)
    while frame is not None and "dlopt_scope" not in frame.f_code.co_varnames:
        path = frame.f_code.co_filename
        if path.endswith("parallel_for" + os.sep + "control_flow_ops.py"):
            return None
        if path.endswith("custom_gradient.py") and user:
            return "tf.recompute_grad, keras.remat or tf.custom_gradient"
        if path.endswith("polymorphic_function.py") and graph is not graph_now():
            return "tf.function"
        user = user or not any(part in path for part in _CONVERSION)
        frame = frame.f_back
    return None


def graph_now() -> Any:
    """The graph that TensorFlow builds now; None if it computes at once."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
