"""What a train step builds and reports, found by tracing it once without running it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.walk import layers_below


@dataclasses.dataclass(frozen=True, eq=False)
class LossSource:
    """Where the loss of a batch is found in a train step.

    Attributes:
        metric: mean to which the step adds the loss; None to take it from the logs.
        keys: names in the step's logs that hold the result of that mean.
    """

    metric: keras.metrics.Mean | None
    keys: tuple[str, ...] = ("loss",)


def is_plain(step: Any) -> bool:
    """Whether a bound train step is Keras' own."""
    return getattr(step, "__func__", None) is keras.Model.train_step


def is_built(model: keras.Model) -> bool:
    """Whether all variables of a model's layers exist."""
    return model.built and all(layer.built for layer in layers_below(model))


def optimizers_of(model: keras.Model) -> list[Any]:
    """The model's optimizer, if it is in use, and others that its step built."""
    own = [v for v in vars(model).values() if isinstance(v, keras.optimizers.Optimizer)]
    found = {id(v): v for v in [model.optimizer, *own] if v is not None}
    return [optimizer for optimizer in found.values() if optimizer.built]


def state_of(model: keras.Model) -> list[keras.Variable]:
    """Weights, seeds and optimizer variables of a model."""
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    for optimizer in optimizers_of(model):
        variables += optimizer.variables
    return variables


def named_loss(model: keras.Model) -> keras.metrics.Mean | None:
    """Keras' own mean of the loss over the epoch."""
    for metric in model.metrics:
        if metric.name == "loss" and isinstance(metric, keras.metrics.Mean):
            return metric
    return None


def prepare(model: keras.Model, step: Callable, spec: Any) -> LossSource | None:
    """Builds what is missing; returns where the step's loss is found.

    Keras builds a model without an `Input` in its first step, and a train step of the
    user's own may use other optimizers, and report its loss by another metric, than the
    compiled ones. Tracing the step creates the variables, without running it.

    Args:
        model: compiled.
        step: its train step.
        spec: of a batch of its data; None if unknown.

    Raises:
        ModelError: if something is missing and the step cannot be traced.
    """
    built = is_built(model)
    if is_plain(step) and built:
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        metric = named_loss(model)
        return None if metric is None else LossSource(metric)
    if spec is None or keras.backend.backend() != "tensorflow":
        metric = named_loss(model)
        if built and model.optimizer.built:
            return None if metric is None else LossSource(metric)
        raise _cannot_build(model, step)
    try:
        return _traced(model, step, spec)
    except Exception as error:
        if not model.run_eagerly:
            raise
        raise _cannot_build(model, step) from error


def _traced(model: keras.Model, step: Callable, spec: Any) -> LossSource | None:
    import tensorflow as tf

    spec = keras.tree.map_structure(
        lambda part: None if isinstance(part, tf.OptionalSpec) else part, spec
    )
    found: list[LossSource | None] = []

    @tf.autograph.experimental.do_not_convert
    def one(data):
        with _watched_means(model) as seen:
            logs = step(data)
        found.append(_source(model, logs, *seen))

    @tf.function
    @tf.autograph.experimental.do_not_convert
    def run(data):
        model.distribute_strategy.run(one, args=(data,))

    run.get_concrete_function(spec)
    return found[-1]


@contextlib.contextmanager
def _watched_means(model: keras.Model) -> Iterator[tuple[list[Any], list[Any]]]:
    """Lists which means are updated, and which tensors are their results."""
    means = [m for m in model.metrics if isinstance(m, keras.metrics.Mean)]
    updated: list[Any] = []
    results: list[Any] = []

    def watch(metric):
        update, result = metric.update_state, metric.result

        def update_state(*args, **kwargs):
            updated.append(metric)
            return update(*args, **kwargs)

        def give():
            value = result()
            results.append((metric, value))
            return value

        _compat.replace_method(metric, "update_state", update_state)
        _compat.replace_method(metric, "result", give)

    kept = [{k: vars(m).get(k) for k in ("update_state", "result")} for m in means]
    for metric in means:
        watch(metric)
    try:
        yield updated, results
    finally:
        for metric, methods in zip(means, kept, strict=True):
            for name, method in methods.items():
                if method is None:
                    _compat.restore_method(metric, name)
                else:  # Keras keeps a wrapped one on the instance
                    _compat.replace_method(metric, name, method)


def _source(model, logs, updated, results) -> LossSource | None:
    logs = logs if isinstance(logs, dict) else {}
    for metric, value in results:
        if value is logs.get("loss"):
            same = [v for m, v in results if m is metric]
            keys = [k for k, v in logs.items() if any(v is one for one in same)]
            return LossSource(metric, tuple(keys))
    named = named_loss(model)
    if named is not None and any(metric is named for metric in updated):
        return LossSource(named)
    return LossSource(None) if "loss" in logs else None


def _cannot_build(model: keras.Model, step: Callable) -> ModelError:
    if not is_plain(step):
        return ModelError(
            f"{model.name} has a train step of its own that cannot be traced, and what "
            "it builds and reports is found by tracing it. Write it with operations of "
            "TensorFlow or keras.ops, without .numpy(), or leave the callback out."
        )
    return ModelError(
        f"{model.name} has layers without weights, and its train step cannot be traced "
        "to build them before the first step. Call the model once on a batch, or give "
        "it a keras.Input, before fit()."
    )
