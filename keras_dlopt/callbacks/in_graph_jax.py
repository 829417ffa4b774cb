"""The hooked train step on JAX: the state is a fifth part of the trainer's tuple."""

from typing import Any

from keras import ops

from keras_dlopt.callbacks.controller import Seen
from keras_dlopt.callbacks.state import index_of


def step(hub: Any, original, state, data):
    """Runs `original(state, data)`, then the controllers of a `StepHub`."""
    trainable, rest, optimizer, metrics, values = state
    model = hub.model
    source = hub.loss_source()
    parts = source.metric.variables[:2] if source and source.metric else []
    at = [index_of(model.metrics_variables, v) for v in parts]
    held = [metrics[i] for i in at]
    metrics = _put(metrics, at, [ops.zeros_like(value) for value in held])
    rate = hub.rate.traced(optimizer, values)

    first = hub.inner_optimizer.variables[0]
    steps = optimizer[index_of(model.optimizer.variables, first)]
    with hub.rate.bound(values), hub.scheduled(steps):
        logs, after = original((trainable, rest, optimizer, metrics), data)

    new = [after[3][i] for i in at]
    sums = [a + b for a, b in zip(held, new, strict=True)]
    after = (*after[:3], _put(after[3], at, sums))
    seen = Seen(
        loss=new[0] / new[1] if parts else None,
        rate=rate,
        before=list(trainable) if hub.wants("wants_weights") else None,
        after=list(after[0]) if hub.wants("wants_weights") else None,
        gradients=hub.take_gradients(),
        variables=[*after[0], *after[1], *after[2]],
        total=lambda tensor: tensor,
    )
    values, factor, keep = hub.advance(values, seen)
    if keep is not None:
        after = (
            _select(keep, after[0], trainable),
            _select(keep, after[1], rest),
            _select(keep, after[2], optimizer),
            after[3],
        )
    changed, values = hub.rate.multiplied(after[2], values, factor)
    if parts and isinstance(logs, dict) and "loss" in logs:
        logs = {**logs, "loss": sums[0] / sums[1]}
    return logs, (after[0], after[1], changed, after[3], values)


def _put(items, at, values) -> list:
    items = list(items)
    for i, value in zip(at, values, strict=True):
        items[i] = value
    return items


def _select(keep, new, old) -> list:
    return [ops.where(keep, n, o) for n, o in zip(new, old, strict=True)]
