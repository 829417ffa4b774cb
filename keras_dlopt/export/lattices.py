"""Which tensor of a file lies on which grid, from the trained ranges around it."""

import collections

import numpy as np

from keras_dlopt.export.flat import Flat, Op
from keras_dlopt.export.operators import CUTS, KEEPS_GRID, READS_SHAPE, fixed
from keras_dlopt.export.pairs import Lattice, View


class Lattices:
    """The grid of each tensor that an operation makes, for those that have one.

    - The grid of a tensor's quantizer; the widest, if it has several.
    - Before an operation that keeps values, the grid of what comes after it.
    - After one, the grid of what goes in; a quantizer there rounds once more.

    Args:
        file: without its pairs.
        views: what the pairs made.
        bits: of all activations, 8 or 16.
    """

    def __init__(self, file: Flat, views: dict[int, View], bits: int = 8):
        self.file, self.views, self.bits = file, views, bits
        self.own: dict[int, Lattice] = {}
        self._agreed: set[int] = set()
        self._takers: dict[int, list[Op]] = collections.defaultdict(list)
        for op in file.ops:
            for i in set(op.inputs):
                self._takers[i].append(op)
        self._of_views: dict[int, list[Lattice]] = collections.defaultdict(list)
        for view in views.values():
            self._of_views[view.source].append(view.grid)
        for source, grids in self._of_views.items():
            if source not in views:
                self.own[source] = max(grids, key=lambda g: g.high - g.low)
        for op in reversed(file.ops):
            self._backward(op)
        for op in file.ops:
            self._forward(op)

    def at(self, index: int) -> Lattice | None:
        """The grid of a tensor as it is named in the file; None for float."""
        view = self.views.get(index)
        return self.own.get(index) if view is None else view.grid

    def is_sure(self, index: int) -> bool:
        """Whether all that take a tensor find it on its grid, whoever made it."""
        return index in self.views or index in self._agreed

    def moving(self, op: Op) -> list[int]:
        """The tensors of float that an operation takes and that are not constant."""
        return [
            i for i in op.inputs if self.file.is_float(i) and self.file.data(i) is None
        ]

    def _backward(self, op: Op) -> None:
        grid = self.own.get(op.outputs[0]) if op.outputs else None
        if grid is None or not passes(op, grid):
            return
        if any(self.own.get(o) != grid for o in op.outputs):
            return
        for i in self.moving(op):
            if self.at(i) is None and self._ends_on(i, grid):
                self.own[i] = grid
                self._agreed.add(i)

    def _ends_on(self, index: int, grid: Lattice) -> bool:
        """Whether all that take a tensor find it on one grid, if it is put there."""
        if index in self.file.outputs or self._of_views.get(index):
            return False
        return all(
            self.own.get(o) == grid and passes(op, grid)
            for op in self._takers[index]
            if op.name not in READS_SHAPE
            for o in op.outputs
        )

    def _forward(self, op: Op) -> None:
        ends = fixed(op.name, self.bits)
        if ends is not None and all(self.at(i) for i in self.moving(op)):
            self.own[op.outputs[0]] = Lattice(np.float32(ends[0]), ends[1], self.bits)
        elif op.name in KEEPS_GRID:
            taken = {self.at(i) for i in self.moving(op)}
            if len(taken) != 1 or None in taken:
                return  # joined from several grids, it needs one of its own
            (grid,) = taken
            for o in op.outputs:
                if len(self.moving(op)) == 1 or o not in self.own:
                    self.own[o] = grid  # type: ignore[assignment]


def passes(op: Op, grid: Lattice) -> bool:
    """Whether an operation on a grid returns values that it took."""
    return op.name in KEEPS_GRID or cuts_nothing(op, grid)


def cuts_nothing(op: Op, grid: Lattice) -> bool:
    """Whether an operation only cuts values off that the grid does not have."""
    low, high = CUTS.get(op.name, (np.inf, -np.inf))
    step = float(grid.scale)
    return bool(grid.low >= low - 1e-6 * step and grid.high <= high + 1e-6 * step)
