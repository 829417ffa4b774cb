"""One step on one replica: prepare, accumulate, update, average, constrain."""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_dlopt.optimizers import _gradients
from keras_dlopt.optimizers._cells import Cell, assign, choose, compute_dtype, read
from keras_dlopt.optimizers._replicas import is_sparse


def run(
    optimizer: Any, grads: list[Any], cells: list[Cell], shared: Any, scalars: Any
) -> None:
    """Does all that one call of `apply` does to the weights of one replica.

    Args:
        optimizer: whose options and `update` are used.
        grads: one gradient per cell, summed over the replicas.
        cells: weights and their state.
        shared: variables that belong to no single weight, by name.
        scalars: `"lr"`, `"iterations"` (updates so far), `"count"` (calls so far).
    """
    step = ops.cast(scalars["iterations"] + 1, "float32")
    touched = [v for c in cells for v in c.variables] + list(shared.values())

    def full(grads):
        grads = prepare(optimizer, grads, cells)
        optimizer.update(grads, cells, scalars["lr"], step, shared=shared)

    if optimizer.gradient_accumulation_steps:
        _accumulate(optimizer, grads, cells, scalars["count"], full, touched)
    elif optimizer.skip_nonfinite:
        finite = _gradients.all_finite(grads)
        choose(finite, lambda: full(grads), lambda: None, touched)
    else:
        full(grads)
    if optimizer.use_ema:
        _average(optimizer, cells, scalars["iterations"])
    for cell in cells:
        if cell.constraint is not None:
            assign(cell.weight, cell.constraint(read(cell.weight)))


def prepare(optimizer: Any, grads: list[Any], cells: list[Cell]) -> list[Any]:
    """Clips and centralizes, in the precision that the rule computes in."""
    if any(is_sparse(g) for g in grads):  # then no option needs the whole gradient
        return grads
    grads = _cast(grads, cells)
    if optimizer.centralize:
        grads = [_gradients.centralize(g) for g in grads]
    if optimizer.adaptive_clip is not None:
        ratio = optimizer.adaptive_clip
        grads = [
            _gradients.clip_adaptively(g, read(c.weight), ratio)
            for g, c in zip(grads, cells, strict=True)
        ]
    if optimizer.clipnorm:
        grads = _gradients.clip_each(grads, optimizer.clipnorm)
    elif optimizer.global_clipnorm:
        grads = _gradients.clip_together(grads, optimizer.global_clipnorm)
    elif optimizer.clipvalue:
        grads = _gradients.clip_values(grads, optimizer.clipvalue)
    return grads


def _accumulate(
    optimizer: Any,
    grads: list[Any],
    cells: list[Cell],
    count: Any,
    full: Callable[[list[Any]], None],
    touched: list[Any],
) -> None:
    """Updates every k-th time, with the mean of the last k gradients."""
    steps = optimizer.gradient_accumulation_steps
    grads = _cast(grads, cells)
    if optimizer.skip_nonfinite:
        finite = _gradients.all_finite(grads)
        grads = [ops.where(finite, g, ops.zeros_like(g)) for g in grads]
    held = [c.extra["gradient_accumulator"] for c in cells]
    sums = [read(a) + g for a, g in zip(held, grads, strict=True)]

    def last():
        full([s / steps for s in sums])
        for variable in held:
            assign(variable, ops.zeros(variable.shape))

    def earlier():
        for variable, value in zip(held, sums, strict=True):
            assign(variable, value)

    choose((count + 1) % steps == 0, last, earlier, touched)


def _average(optimizer: Any, cells: list[Cell], iterations: Any) -> None:
    """Moves the averages, and now and then the weights onto them."""
    momentum = ops.cast(iterations != 0, "float32") * optimizer.ema_momentum
    for cell in cells:
        keep = ops.cast(momentum, compute_dtype(cell.weight))
        average = cell.extra["average"]
        assign(average, keep * read(average) + (1 - keep) * read(cell.weight))
    if not optimizer.ema_overwrite_frequency:
        return

    def overwrite():
        for cell in cells:
            assign(cell.weight, read(cell.extra["average"]))

    due = (iterations + 1) % optimizer.ema_overwrite_frequency == 0
    choose(due, overwrite, lambda: None, [c.weight for c in cells])


def _cast(grads: list[Any], cells: list[Cell]) -> list[Any]:
    return [
        ops.cast(g, compute_dtype(c.weight)) for g, c in zip(grads, cells, strict=True)
    ]
