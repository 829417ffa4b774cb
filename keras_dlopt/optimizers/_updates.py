"""One update of one weight, or of the slab: by a fused kernel or by the rule."""

from typing import Any

from keras import ops

from keras_dlopt.optimizers._cells import Cell, assign, compute_dtype, read
from keras_dlopt.optimizers._replicas import is_sparse, on_tensorflow
from keras_dlopt.optimizers._slab import Slab, SlabSlice

GRID = 2.0**24  # float32 numbers between 0.5 and 1 are 1 / GRID apart
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, fill [0, 1) evenly


def update_one(optimizer: Any, gradient: Any, cell: Cell, lr: Any, step: Any) -> None:
    """Updates one weight and its state."""
    dtype = compute_dtype(cell.weight)
    lr = ops.cast(lr, dtype) * cell.multiplier if cell.multiplier != 1.0 else lr
    lr, step = ops.cast(lr, dtype), ops.cast(step, dtype)
    if is_sparse(gradient):
        _shrink(cell, lr, step)
        optimizer.update_step(gradient, cell.weight, lr)
    elif can_fuse(optimizer, cell):
        _shrink(cell, lr, step)
        optimizer.fused(gradient, cell.weight, cell.slots, lr, step)
    else:
        weight = read(cell.weight)
        slots = {name: read(v) for name, v in cell.slots.items()}
        change, slots = optimizer.rule(gradient, weight, slots, lr, step)
        if optimizer.cautious:
            change = cautious(change, gradient)
        if cell.decay:
            change = change + lr * cell.decay * weight
        assign(cell.weight, weight - change)
        for name, value in slots.items():
            assign(cell.slots[name], value)


def update_slab(
    optimizer: Any, grads: list[Any], cells: list[Cell], slab: Slab, lr: Any, step: Any
) -> None:
    """Updates all small weights at once; `cells` in the slab's order."""
    gradient = slab.join(grads)
    decay = decay_of(cells, slab)
    fused = optimizer.fusable
    weight = None
    if decay is not None or not fused:
        weight = slab.join([read(c.weight) for c in cells])
    if fused:
        # The kernel works on a scratch variable: on the decayed weights, or on zeros,
        # where it leaves minus its step.
        start = (
            ops.zeros((slab.total,), slab.dtype)
            if weight is None
            else weight - weight * (lr * decay)
        )
        slab.scratch.assign(start, read_value=False)
        optimizer.fused(gradient, slab.scratch, slab.flat, lr, step)
        result = slab.scratch.read_value()
    else:
        state = {name: v.read_value() for name, v in slab.flat.items()}
        change, state = optimizer.rule(gradient, weight, state, lr, step)
        if decay is not None:
            change = change + lr * decay * weight
        result = weight - change
        for name, value in state.items():
            slab.flat[name].assign(value, read_value=False)
    for cell, part in zip(cells, slab.split(result), strict=True):
        if weight is None:
            cell.weight.assign_add(part, read_value=False)
        else:
            cell.weight.assign(part, read_value=False)


def cautious(change: Any, gradient: Any) -> Any:
    """The change without the entries that point against the gradient, scaled up."""
    agrees = ops.cast(change * gradient > 0, change.dtype)
    return change * agrees / ops.maximum(ops.mean(agrees), 1e-3)


def can_fuse(optimizer: Any, cell: Cell) -> bool:
    """Whether a TensorFlow kernel can update this weight in place."""
    held = (cell.weight, *cell.slots.values())
    return (
        optimizer.fusable
        and not optimizer.cautious
        and on_tensorflow()
        and not any(isinstance(v, SlabSlice) for v in held)
        and all(v.dtype == cell.weight.dtype for v in held)
        and cell.weight.dtype in ("float32", "float64")
    )


def _shrink(cell: Cell, lr: Any, step: Any) -> None:
    """Decays in place: w <- w * (1 - lr * decay), one product."""
    if cell.decay:
        weight = cell.weight
        weight.assign(weight * kept(lr, cell.decay, step), read_value=False)


def kept(lr: Any, decay: float, step: Any) -> Any:
    """1 - lr * decay in the precision of `lr`, without a rounding that adds up.

    float32 has steps of 2^-24 below 1, and lr * decay is a few dozen of them: rounded
    to the nearest, the same error would come back at every update. The two neighbours
    take turns instead (a Weyl sequence on the update's number), so that their mean is
    right to one such step over any number of updates.
    """
    exact = 1.0 - ops.cast(lr, "float64") * decay
    if lr.dtype == "float64":
        return exact
    turn = ops.cast(step, "float64") * GOLDEN
    whole = ops.floor(exact * GRID + (turn - ops.floor(turn)))
    return ops.cast(whole / GRID, lr.dtype)


def decay_of(cells: list[Cell], slab: Slab) -> Any:
    """The decay of each entry of the slab: None, one number, or a flat tensor."""
    decays = [c.decay for c in cells]
    if not any(decays):
        return None
    if len(set(decays)) == 1:
        return decays[0]
    return ops.repeat(ops.array(decays, slab.dtype), slab.sizes)
