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


@contextlib.contextmanager
def untraced_classes(classes: Iterable[type]) -> Iterator[None]:
    """Inside, a `call` under `@tf.function` of these classes runs as plain Python.

    Keras builds models by symbolic calls, in which variables have no values: a trace
    made then keeps random ones in place of the weights, and later calls find it.

    Relies on: TensorFlow's `Function.python_function`.
    """
    held = {
        base: vars(base)["call"]
        for cls in classes
        for base in cls.__mro__
        if hasattr(vars(base).get("call"), "python_function")
    }
    try:
        for base, call in held.items():
            setattr(base, "call", _in_either(call.python_function))  # noqa: B010
        yield
    finally:
        for base, call in held.items():
            setattr(base, "call", call)  # noqa: B010


def _in_either(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method with conditions on tensors, for a graph as for running at once."""

    @functools.wraps(function)
    def plain(self: Any, *args: Any, **kwargs: Any) -> Any:
        import tensorflow as tf

        run = function if tf.executing_eagerly() else tf.autograph.to_graph(function)
        return run(self, *args, **kwargs)

    return plain


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
    `tf.custom_gradient` and `tf.recompute_grad` call the function they are given; the
    name of the one function that Keras traces inside a layer, anew at each call.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    user = own = False
    frame: Any = sys._getframe(1)
    while frame is not None and "dlopt_scope" not in frame.f_code.co_varnames:
        path = frame.f_code.co_filename
        if path.endswith("parallel_for" + os.sep + "control_flow_ops.py"):
            return None
        if path.endswith("custom_gradient.py") and user:
            return "tf.recompute_grad, keras.remat or tf.custom_gradient"
        traced = path.endswith("polymorphic_function.py") and graph is not graph_now()
        if traced and not own:
            return "tf.function"
        own = own or frame.f_code.co_name.endswith("__conv_xla")
        user = user or not any(part in path for part in _CONVERSION)
        frame = frame.f_back
    return None


def fed(variable: Any, value: Any) -> Any:
    """A value that was computed at once, as an argument of the function traced now.

    TensorFlow makes small ones constants in there, which have no gradient.

    Args:
        variable: whose value it is.
        value: the tensor that stands for it.

    Relies on: `FuncGraph.capture_call_time_value` and `outer_graph`.
    """
    graph = graph_now()
    if graph is None:
        return value
    import tensorflow as tf
    from tensorflow.python.framework.func_graph import FuncGraph

    while isinstance(getattr(graph, "outer_graph", None), FuncGraph):
        graph = graph.outer_graph
    spec = tf.TensorSpec(value.shape, value.dtype)
    return graph.capture_call_time_value(lambda: value, spec, key=id(variable))


def graph_now() -> Any:
    """The graph that TensorFlow builds now; None if it computes at once."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
