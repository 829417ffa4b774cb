"""Keras' trainer and optimizers under `tf.distribute`."""

import contextlib
import math
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras

_LOCK = threading.RLock()


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


def replace_method(owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Has one model or optimizer call `function` in place of its method `name`.

    Relies on: `fit` and the train function look up `train_step`, `fit`, `evaluate`,
    `predict_on_batch` and `optimizer.apply` on the instance at each call or trace;
    attribute tracking, which is passed by, does not look at functions.
    """
    object.__setattr__(owner, name, function)


def restore_method(owner: Any, name: str) -> None:
    """Undoes `replace_method`; does nothing where there is nothing to undo."""
    if name in vars(owner):
        object.__delattr__(owner, name)


def attach(owner: Any, name: str, value: Any) -> None:
    """Keeps a value on a model or an optimizer without its taking it for a part.

    Relies on: `object.__setattr__` goes past the tracking of layers and variables;
    `save_weights` walks plain attributes all the same, and finds a layer there.
    """
    object.__setattr__(owner, name, value)


def attached(owner: Any, name: str) -> Any:
    """What `attach` keeps on this object itself, or None."""
    return vars(owner).get(name)


# What `compile` and `fit` keep on the model that they are called on.
TRAINER_STATE = (
    "optimizer",
    "loss",
    "compiled",
    "stop_training",
    "run_eagerly",
    "jit_compile",
    "steps_per_execution",
    "distribute_strategy",
    "_distribute_strategy",
    "_compile_loss",
    "_compile_metrics",
    "_loss_tracker",
    "_call_has_training_arg",
)


def seen_as(model: keras.Model, attributes: dict[str, Any]) -> Any:
    """A second object of the model's class and content, some attributes apart.

    What is set on one of the two is on the other as well.

    Relies on: all that a Keras model is, its tracker included, is in its `__dict__`,
    and its class makes no difference to that.
    """
    cls = type(model)
    body = {"__module__": cls.__module__, "__doc__": cls.__doc__} | attributes
    view: Any = object.__new__(
        types.new_class(cls.__name__, (cls,), {}, lambda space: space.update(body))
    )
    object.__setattr__(view, "__dict__", model.__dict__)
    return view
