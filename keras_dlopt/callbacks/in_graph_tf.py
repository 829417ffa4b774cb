"""The hooked train step on TensorFlow: variables are read and assigned in the graph."""

from typing import Any

from keras import ops

from keras_dlopt import runtime
from keras_dlopt.callbacks.controller import Seen
from keras_dlopt.callbacks.preparing import state_of


def step(hub: Any, original, data):
    """Runs `original(data)`, then the controllers of a `StepHub`."""
    source = hub.loss_source()
    parts = source.metric.variables[:2] if source and source.metric else []
    held = _read(parts)
    for variable, value in zip(parts, held, strict=True):
        variable.assign(ops.zeros_like(value))
    trainable = hub.model.trainable_variables
    before = _read(trainable) if hub.wants("wants_weights") else None
    undo = state_of(hub.model) if hub.wants("undoes") else []
    old = _read(undo)
    rate = hub.rate.current()

    with hub.scheduled(runtime.value(hub.inner_optimizer.variables[0])):
        logs = original(data)

    new = _read(parts)
    for variable, held_part, new_part in zip(parts, held, new, strict=True):
        variable.assign(held_part + new_part)
    seen = Seen(
        loss=_loss(source, new, logs),
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
    if parts and isinstance(logs, dict):
        whole = {key: source.metric.result() for key in source.keys if key in logs}
        logs = {**logs, **whole}
    return logs


def _loss(source: Any, sums: list[Any], logs: Any) -> Any:
    """The mean loss of the global batch."""
    if source is None:
        return None
    if source.metric is None:
        own = ops.mean(ops.cast(logs["loss"], "float32"))
        sums = [own, ops.ones_like(own)]
    both = runtime.total(ops.stack(sums))
    return both[0] / both[1]


def _read(variables) -> list[Any]:
    return [runtime.value(variable) for variable in variables]


def _select(variables, keep, new, old) -> None:
    """Assigns `new` where `keep` holds, else `old`."""
    import tensorflow as tf

    values = [tf.where(keep, n, o) for n, o in zip(new, old, strict=True)]
    runtime.assign_on_each(variables, values)
