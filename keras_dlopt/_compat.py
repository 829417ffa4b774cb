"""The only file that touches undocumented Keras. Each use has a canary test.

A canary (`tests/test_compat.py`) that fails after a Keras upgrade says which function
here to mend; nothing else in the package needs to change.
"""

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterable, Iterator
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


# -- training under tf.distribute ------------------------------------------------------


def replace_train_functions(
    model: keras.Model, make_function: Callable[[Any], Any]
) -> None:
    """Has this model's train and test functions made by `make_function(step)`.

    Relies on: `fit` and `evaluate` call `model._make_function(step)` through
    `make_train_function` and `make_test_function`.
    """
    object.__setattr__(model, "_make_function", make_function)
    model.train_function = None
    model.test_function = None


def build_from_spec(model: keras.Model) -> None:
    """Has this model built from the spec of its data, not from a batch of it.

    Keras draws a batch and averages it over the replicas, which loses the first batch
    of a generator and fails for strings, uneven batches and several workers.

    Relies on: `Model._maybe_symbolic_build(iterator, data_batch)`,
    `Model._symbolic_build(data_batch)`, `TFEpochIterator._distributed_dataset`.
    """

    def build(iterator=None, data_batch=None):
        if iterator is not None:
            data_batch = _stand_in(iterator._distributed_dataset.element_spec)
        with model.distribute_strategy.scope():
            model._symbolic_build(data_batch=data_batch)

    object.__setattr__(model, "_maybe_symbolic_build", build)


def build_metrics(model: keras.Model, spec: Any) -> None:
    """Has the compiled metrics built before the first step, from the spec of a batch.

    Without a strategy Keras builds them in the first step; their state cannot be
    restored, and their result not asked for, before that.

    Relies on: `Model._symbolic_build(data_batch)`.
    """
    with model.distribute_strategy.scope():
        model._symbolic_build(data_batch=_stand_in(spec))


def _stand_in(spec: Any) -> Any:
    """Zeros in the shape of one replica's share; unknown sizes are 2."""
    import tensorflow as tf

    def one(part):
        part = getattr(part, "_value_specs", [part])[
            0
        ]  # tf.distribute's PerReplicaSpec
        if not isinstance(part, tf.TensorSpec):
            return None
        shape = [2 if size is None else size for size in part.shape or [None]]
        if part.dtype == tf.string:
            return tf.fill(shape, "")
        return tf.zeros(shape, part.dtype)

    is_spec = (tf.TypeSpec,)
    return keras.tree.map_structure(
        lambda part: one(part) if isinstance(part, is_spec) else part, spec
    )


def batch_count(iterator: Any) -> float | None:
    """How many batches a distributed iterator gives; `inf` if endless, None if unknown.

    Relies on: TensorFlow's `DistributedIterator._cardinality`.
    """
    count = getattr(iterator, "_cardinality", None)
    if count is None:
        return None
    count = int(count)
    return count if count >= 0 else {-1: math.inf}.get(count)


class _LossesByThread:
    """In place of a layer's list of losses: a list for each thread."""

    def __init__(self):
        self._here = threading.local()

    def _list(self) -> list[Any]:
        return self._here.__dict__.setdefault("losses", [])

    def __getitem__(self, key: Any) -> Any:
        return self._list()[key]

    def extend(self, losses: Any) -> None:
        self._list().extend(losses)

    def clear(self) -> None:
        self._list().clear()

    def __deepcopy__(self, memo: Any) -> "_LossesByThread":
        return _LossesByThread()


def keep_losses_apart(layer: keras.layers.Layer) -> None:
    """Has replicas that are traced in turns not see each other's `add_loss`.

    Each replica is traced in a thread. Where they meet in the forward pass
    (synchronized normalization) the next one's call begins before this one's has ended,
    and clears the losses that this one has added so far.

    Relies on: `Layer._losses`, a list that is read as `[:]`, extended and cleared.
    """
    assert isinstance(layer._losses, list | _LossesByThread)
    object.__setattr__(layer, "_losses", _LossesByThread())


def watch_losses(model: keras.Model, watch: Callable[[Any, Any], None]) -> None:
    """Has `watch(loss, values)` see what each compiled loss gives, before any mean.

    Does nothing before Keras has built the losses, in the first `fit` or step.

    Relies on: `Model._compile_loss`, and in it `_flat_losses`, tuples that hold
    `keras.losses.Loss` objects; their `call` gives the values.
    """
    parts = getattr(model._compile_loss, "_flat_losses", None) or ()
    for loss in [one for part in parts for one in part]:
        if isinstance(loss, keras.losses.Loss) and "call" not in vars(loss):
            call = functools.partial(_watched, loss.call, loss, watch)
            object.__setattr__(loss, "call", call)


def _watched(call: Any, loss: Any, watch: Any, *arguments: Any, **options: Any) -> Any:
    values = call(*arguments, **options)
    watch(loss, values)
    return values


def input_sharding(iterator: Any) -> str | None:
    """How workers share the data of a distributed iterator: a policy's name, or None.

    Relies on: TensorFlow's `DistributedIterator._iterators` and their `_dataset`.
    """
    import tensorflow as tf

    names = set()
    for part in iterator._iterators:
        dataset = getattr(part, "_dataset", None)
        if dataset is None:
            return None
        policy = dataset.options().experimental_distribute.auto_shard_policy
        names.add(tf.data.experimental.AutoShardPolicy(policy).name.lower())
    return names.pop() if len(names) == 1 else None


def do_not_ask_for_more(iterator: Any) -> None:
    """Has a worker take its next batch without asking all workers whether there is one.

    The question is one more exchange in every step, and the answer makes the batch
    dimension unknown. Only for a caller that stops at the last batch by itself.

    Relies on: TensorFlow's `DistributedIterator._enable_get_next_as_optional`.
    """
    assert hasattr(iterator, "_enable_get_next_as_optional")
    iterator._enable_get_next_as_optional = False


def replace_update(
    optimizer: Any, prepare: Callable[[list[Any], list[Any]], list[Any]]
) -> None:
    """Has one of Keras' optimizers prepare its gradients, then update per replica.

    Keras clips before it adds the replicas' gradients up, and calls `merge_call` inside
    a condition when it accumulates gradients or overwrites weights by averages. Here
    `prepare(gradients, variables)` runs in the replica and gives what is the same on
    all; everything after that runs where each replica's variables are local.

    Relies on: `BaseOptimizer._backend_apply_gradients(grads, variables)` and the
    functions that it calls, which the TensorFlow class overrides.
    """
    import tensorflow as tf

    mro = type(optimizer).__mro__
    base: Any = next(c for c in mro if c.__name__ == "BaseOptimizer")
    plain = optimizer._backend_apply_gradients

    def apply(grads, variables):
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return plain(grads, variables)
        anchor = variables[0].value

        def local(_, grads):
            with _plain_backend(base):
                base._backend_apply_gradients(optimizer, grads, variables)

        def across(strategy, grads):
            strategy.extended.update(anchor, local, args=(grads,), group=False)

        context.merge_call(across, args=(prepare(list(grads), list(variables)),))

    object.__setattr__(optimizer, "_backend_apply_gradients", apply)


_DISTRIBUTED = (
    "_backend_update_step",
    "_apply_weight_decay",
    "_overwrite_model_variables_with_average_value",
    "_backend_increment_gradient_accumulators",
)


@contextlib.contextmanager
def _plain_backend(base: type) -> Iterator[None]:
    """Inside, optimizers update variables as they do without a strategy."""
    # On the class: Nadam's own `_backend_update_step` calls its parent's.
    home = next(
        c for c in keras.optimizers.Optimizer.__mro__ if _DISTRIBUTED[0] in vars(c)
    )
    with _LOCK:
        own = {name: vars(home)[name] for name in _DISTRIBUTED}
        for name in _DISTRIBUTED:
            setattr(home, name, getattr(base, name))
        try:
            yield
        finally:
            for name, function in own.items():
                setattr(home, name, function)
