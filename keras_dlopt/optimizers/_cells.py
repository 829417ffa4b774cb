"""Weights and their state as one replica sees them: one weight, or all small ones."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from keras import ops

from keras_dlopt import runtime
from keras_dlopt._compat import SlabSlice
from keras_dlopt.optimizers._slab import Slab

GRID = 2.0**24  # float32 numbers between 0.5 and 1 are 1 / GRID apart
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, fill [0, 1) evenly


@dataclasses.dataclass(eq=False)
class Cell:
    """One trainable weight and its state.

    Attributes:
        index: position among the variables the optimizer was built with.
        weight: the variable, with `assign`.
        slots: the rule's state by name.
        extra: state that no rule sees: the average, the accumulated gradient.
        decay: decoupled weight decay per unit of learning rate; None for none.
        multiplier: factor on the learning rate.
        constraint: what the weight is passed through after the step.
        frozen: whether the weight is not trainable now.
        idle: updates of other weights that it had no part in.
    """

    index: int
    weight: Any
    slots: dict[str, Any]
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    decay: float | None = None
    multiplier: float = 1.0
    constraint: Callable[[Any], Any] | None = None
    frozen: bool = False
    idle: int = 0

    @property
    def variables(self) -> list[Any]:
        """Everything an update may assign."""
        return [self.weight, *self.slots.values(), *self.extra.values()]

    @property
    def dtype(self) -> str:
        """What the rule computes in."""
        return runtime.compute_dtype(self.weight)

    def scalars(self, lr: Any, step: Any) -> tuple[Any, Any]:
        """This weight's learning rate, and the step, in its precision."""
        lr = ops.cast(lr, self.dtype)
        lr = lr * self.multiplier if self.multiplier != 1.0 else lr
        step = ops.cast(step, self.dtype)
        return lr, step - self.idle if self.idle else step

    def own_step(self, step: Any) -> Any:
        """1 where the weight had no gradient yet, else the step."""
        seen = ops.any(runtime.read(self.slots["velocity"]) != 0)
        return ops.where(seen, step, ops.ones_like(step))

    def read(self) -> tuple[Any, dict[str, Any]]:
        """The values of the weight and of its state."""
        slots = {name: runtime.read(v) for name, v in self.slots.items()}
        return runtime.read(self.weight), slots

    def write(self, weight: Any, slots: dict[str, Any]) -> None:
        """Assigns the weight and its state."""
        runtime.assign(self.weight, weight)
        for name, value in slots.items():
            runtime.assign(self.slots[name], value)

    @property
    def in_slab(self) -> bool:
        """Whether its state is a slice of a slab's."""
        return any(isinstance(v, SlabSlice) for v in self.slots.values())

    @property
    def fits_kernel(self) -> bool:
        """Whether a TensorFlow kernel can update this weight in place."""
        held = (self.weight, *self.slots.values())
        return (
            runtime.kernels()
            and not self.in_slab
            and all(v.dtype == self.weight.dtype for v in held)
            and self.weight.dtype in ("float32", "float64")
        )

    @contextlib.contextmanager
    def in_place(self, lr: Any, step: Any) -> Iterator[Any]:
        """Gives the variable that a kernel may step: the weight, decayed."""
        self.shrink(lr, step)
        yield self.weight

    def shrink(self, lr: Any, step: Any) -> None:
        """Decays in place: w <- w * (1 - lr * decay), one product."""
        if self.decay is not None:
            left = kept(lr, self.decay, step)
            self.weight.assign(self.weight * left, read_value=False)


class Joined:
    """All small weights and their state as one flat weight.

    Args:
        cells: of the weights, in the slab's order.
        slab: where their state lies.
    """

    fits_kernel = True
    in_slab = True

    def __init__(self, cells: list[Cell], slab: Slab):
        self.cells, self.slab, self.slots = cells, slab, slab.flat
        self.decay = _decay_of(cells, slab)

    def scalars(self, lr: Any, step: Any) -> tuple[Any, Any]:
        """The learning rate and the step as they are: no weight here has its own."""
        return lr, step

    def own_step(self, step: Any) -> Any:
        """For each entry, 1 where its weight had no gradient yet, else the step."""
        parts = self.slab.split(self.slots["velocity"].read_value())
        seen = ops.stack([ops.any(part != 0) for part in parts])
        seen = ops.repeat(seen, self.slab.sizes)
        return ops.where(seen, step, ops.ones_like(step))

    def read(self) -> tuple[Any, dict[str, Any]]:
        """The joined weights and their state."""
        return self.weights(), {n: v.read_value() for n, v in self.slots.items()}

    def weights(self) -> Any:
        """The joined weights."""
        return self.slab.join([runtime.read(c.weight) for c in self.cells])

    def write(self, weight: Any, slots: dict[str, Any]) -> None:
        """Assigns the weights and their state."""
        for name, value in slots.items():
            self.slots[name].assign(value, read_value=False)
        for cell, part in zip(self.cells, self.slab.split(weight), strict=True):
            cell.weight.assign(part, read_value=False)

    @contextlib.contextmanager
    def in_place(self, lr: Any, step: Any) -> Iterator[Any]:
        """Gives the variable that a kernel may step, and hands the result on.

        It holds the decayed weights, or zeros, where a kernel leaves minus its step.
        """
        scratch = self.slab.scratch
        if self.decay is None:
            start = ops.zeros((self.slab.total,), self.slab.dtype)
        else:
            weight = self.weights()
            start = weight - weight * (lr * self.decay)
        scratch.assign(start, read_value=False)
        yield scratch
        parts = self.slab.split(scratch.read_value())
        for cell, part in zip(self.cells, parts, strict=True):
            if self.decay is None:
                cell.weight.assign_add(part, read_value=False)
            else:
                cell.weight.assign(part, read_value=False)


def joined(
    slab: Slab | None, grads: list[Any], cells: list[Cell]
) -> Iterator[tuple[Any, Any]]:
    """(gradient, cell) pairs, the small weights as one if all have a gradient."""
    pairs = list(zip(grads, cells, strict=True))
    if slab is not None:
        small = {c.index: (g, c) for g, c in pairs if c.index in slab.places}
        late = any(c.idle for _, c in small.values())  # each counts for itself
        if len(small) == len(slab.places) and not late:
            ours = [small[index] for index in slab.places]
            flat = slab.join([runtime.densify(g) for g, _ in ours])
            yield flat, Joined([c for _, c in ours], slab)
            pairs = [(g, c) for g, c in pairs if c.index not in slab.places]
    yield from pairs


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


def _decay_of(cells: list[Cell], slab: Slab) -> Any:
    """The decay of each entry of the slab: None, one number, or a flat tensor."""
    decays = [c.decay or 0.0 for c in cells]
    if not any(decays):
        return None
    if len(set(decays)) == 1:
        return decays[0]
    return ops.repeat(ops.array(decays, slab.dtype), slab.sizes)
