"""What one call of `apply` does to the weights of one replica, whatever the method.

Gradients are clipped, accumulated, and handed to the method's `update`; averages of the
weights move once per update, those of all weights, whether they got a gradient or not.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from keras import ops

from keras_dlopt import runtime
from keras_dlopt.optimizers import _gradients
from keras_dlopt.optimizers._cells import Cell


@dataclasses.dataclass(eq=False)
class OneCall:
    """One call of `apply` on one replica.

    Attributes:
        optimizer: whose options and `update` are used.
        grads: one gradient per cell, summed over the replicas.
        cells: weights and their state.
        resting: those without a gradient whose state moves all the same.
        shared: variables that belong to no single weight, by name.
        counter: the variable that holds `count`.
        lr: learning rate.
        iterations: updates so far.
        count: calls so far.
    """

    optimizer: Any
    grads: list[Any]
    cells: list[Cell]
    resting: list[Cell]
    shared: dict[str, Any]
    counter: Any
    lr: Any
    iterations: Any
    count: Any

    def run(self) -> None:
        """Runs it, or leaves all as it is where a gradient is not finite."""
        if self.optimizer.skip_nonfinite:
            finite = _gradients.all_finite(self.grads)
            runtime.choose(finite, self._whole, lambda: None, self._touched)
        else:
            self._whole()

    @property
    def _touched(self) -> list[Any]:
        held = [v for c in (*self.cells, *self.resting) for v in c.variables]
        return [*held, *self.shared.values(), self.counter]

    def _whole(self) -> None:
        steps = self.optimizer.gradient_accumulation_steps
        if steps:
            due = (self.count + 1) % steps == 0
            runtime.choose(due, self._last, self._earlier, self._touched)
        else:
            self._update(self.grads, self.cells)
            self._average()
        for cell in self.cells:
            if cell.constraint is not None:
                runtime.assign(cell.weight, cell.constraint(runtime.read(cell.weight)))
        self.counter.assign(self.count + 1)

    def _update(self, grads: list[Any], cells: list[Cell]) -> None:
        optimizer = self.optimizer
        step = ops.cast(self.iterations + 1, "float32")
        more = {"resting": self.resting} if optimizer.moves_all else {}
        grads = self._prepared(grads, cells)
        optimizer.update(grads, cells, self.lr, step, shared=self.shared, **more)

    def _prepared(self, grads: list[Any], cells: list[Cell]) -> list[Any]:
        """Clipped and centralized, in the precision that the rule computes in."""
        if any(runtime.is_sparse(g) for g in grads):
            return grads  # then no option needs the whole gradient
        optimizer = self.optimizer
        return _gradients.prepare(
            [ops.cast(g, c.dtype) for g, c in zip(grads, cells, strict=True)],
            [cell.weight for cell in cells],
            center=optimizer.centralize,
            adaptive_clip=optimizer.adaptive_clip,
            clipnorm=optimizer.clipnorm,
            global_clipnorm=optimizer.global_clipnorm,
            clipvalue=optimizer.clipvalue,
        )

    # -- accumulation -----------------------------------------------------------------

    def _sums(self) -> list[Any]:
        """The gradients so far, this call's included."""
        return [
            _waiting(c) + ops.cast(g, c.dtype)
            for g, c in zip(self.grads, self.cells, strict=True)
        ]

    def _earlier(self) -> None:
        for cell, total in zip(self.cells, self._sums(), strict=True):
            runtime.assign(cell.extra["gradient_accumulator"], total)

    def _last(self) -> None:
        """Updates by the mean over the last calls; no gradient in one counts as 0."""
        others = [c for c in self.resting if not c.frozen]
        held = [_waiting(c) for c in others]
        steps = self.optimizer.gradient_accumulation_steps
        grads = [total / steps for total in (*self._sums(), *held)]
        with _left_alone(others, [ops.any(total != 0) for total in held]):
            self._update(grads, [*self.cells, *others])
        for cell in (*self.cells, *self.resting):
            variable = cell.extra["gradient_accumulator"]
            runtime.assign(variable, ops.zeros(variable.shape))
        self._average()

    # -- averages ---------------------------------------------------------------------

    def _average(self) -> None:
        """Moves the averages, and now and then the weights onto them."""
        optimizer, cells = self.optimizer, [*self.cells, *self.resting]
        if not optimizer.use_ema:
            return
        for cell in cells:
            keep = ops.cast(self.iterations != 0, cell.dtype) * optimizer.ema_momentum
            held, weight = cell.extra["average"], runtime.read(cell.weight)
            runtime.assign(held, keep * runtime.read(held) + (1 - keep) * weight)
        if not optimizer.ema_overwrite_frequency:
            return
        moved = [c for c in cells if not c.frozen]

        def overwrite():
            for cell in moved:
                runtime.assign(cell.weight, runtime.read(cell.extra["average"]))

        due = (self.iterations + 1) % optimizer.ema_overwrite_frequency == 0
        runtime.choose(due, overwrite, lambda: None, [c.weight for c in moved])


def _waiting(cell: Cell) -> Any:
    return runtime.read(cell.extra["gradient_accumulator"])


@contextlib.contextmanager
def _left_alone(cells: list[Cell], moves: list[Any]) -> Iterator[None]:
    """Puts back the cells that an update should not have moved, by a boolean each."""
    variables = [[c.weight, *c.slots.values()] for c in cells]
    before = [[runtime.value(v) for v in row] for row in variables]
    yield
    for row, values, moved in zip(variables, before, moves, strict=True):
        for variable, old in zip(row, values, strict=True):
            new = ops.where(moved, runtime.value(variable), old)
            runtime.assign(variable, new)
