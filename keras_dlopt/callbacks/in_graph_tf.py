"""The hooked train step on TensorFlow: variables are read and assigned in the graph."""

from typing import Any

from keras import ops

from keras_dlopt import runtime
from keras_dlopt.callbacks.controller import Seen


def step(hub: Any, original, data):
    """Runs `original(data)`, then the controllers of a `StepHub`."""
    metric = hub.loss_metric()
    total, count = metric.variables[:2]
    held = _read([total, count])
    total.assign(ops.zeros_like(held[0]))
    count.assign(ops.zeros_like(held[1]))
    trainable = hub.model.trainable_variables
    before = _read(trainable) if hub.wants("wants_weights") else None
    undo = _undoable(hub) if hub.wants("undoes") else []
    old = _read(undo)
    rate = hub.rate.current()

    with hub.scheduled(runtime.value(hub.inner_optimizer.variables[0])):
        logs = original(data)

    new = _read([total, count])
    total.assign(held[0] + new[0])
    count.assign(held[1] + new[1])
    both = runtime.total(ops.stack(new))
    seen = Seen(
        loss=both[0] / both[1],
        rate=rate,
        before=before,
        after=_read(trainable) if before is not None else None,
        gradients=hub.take_gradients(),
        variables=_read(undo),
        total=runtime.total,
    )
    variables = [v for _, v in hub.named_variables()]
    values, factor, keep = hub.advance(_read(variables), seen)
    if keep is not None:
        _select(undo, keep, seen.variables, old)
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    hub.rate.multiply(factor)
    if isinstance(logs, dict) and "loss" in logs:
        logs = {**logs, "loss": metric.result()}
    return logs


def _read(variables) -> list[Any]:
    return [runtime.value(variable) for variable in variables]


def _undoable(hub: Any) -> list[Any]:
    model = hub.model
    return [
        *model.trainable_variables,
        *model.non_trainable_variables,
        *model.optimizer.variables,
    ]


def _select(variables, keep, new, old) -> None:
    """Assigns `new` where `keep` holds, else `old`."""
    import tensorflow as tf

    values = [tf.where(keep, n, o) for n, o in zip(new, old, strict=True)]
    runtime.assign_on_each(variables, values)
