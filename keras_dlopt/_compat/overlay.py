"""Values in place of a layer's variables, and the layers below a layer."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from keras_dlopt._compat.tracing import fed, graph_now, kept_by
from keras_dlopt.errors import ModelError


class WeightOverlay(keras.StatelessScope):
    """Substitutes values for some variables; everything else passes through.

    `keras.StatelessScope` stops all writes and, unless told otherwise, all losses. This
    scope stops nothing: reads of other variables fall through to the enclosing scope,
    writes and losses made inside are collected, and `commit` hands them on after the
    scope was left. So `add_loss`, regularizers, BatchNorm statistics and dropout seeds
    behave as without it.

    Relies on: `StatelessScope.state_mapping`, `.losses`, `.original_scope`, and the
    hooks `get_current_value`, `add_update` that Keras variables call; variables that
    are made inside have the `_value` None until `initialize_all_variables()`.

    Args:
        values: pairs of a variable and the tensor to read in its place.
    """

    def __init__(self, values: Iterable[tuple[Any, Any]]):
        super().__init__(
            state_mapping=list(values), collect_losses=True, initialize_variables=False
        )
        self._computed = set(self.state_mapping)
        self._written: dict[int, Any] = {}
        self._paused = False
        self._graph: Any = None

    def __enter__(self):
        self._graph = graph_now()
        return super().__enter__()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the variables have the values that they hold."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def get_current_value(self, variable):
        value = self.state_mapping.get(id(variable))
        if value is not None and id(variable) in self._computed:
            value = None if self._paused else self._safe(variable, value)
        if value is None and self.original_scope is not None:
            value = self.original_scope.get_current_value(variable)
        return value

    def _safe(self, variable, value):
        keeper = kept_by(self._graph)
        if keeper:
            raise ModelError(
                f"The variable {variable.path!r} is computed by a transform and read "
                f"inside {keeper}, which would train or run on values of one moment. "
                "Take that off the function (fit() compiles and saves memory by "
                "itself; a layer's call() may keep @tf.function), or leave the "
                "variable out of the recipe."
            )
        return value if self._graph is not None else fed(variable, value)

    def add_update(self, update):
        variable, value = update
        if id(variable) in self._computed:
            raise ModelError(
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
        if any(getattr(v, "_value", v) is None for v in self._written.values()):
            # Made inside, such as a metric's state: Keras keeps a list of them.
            from keras.src.backend.common.variables import initialize_all_variables

            initialize_all_variables()
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
