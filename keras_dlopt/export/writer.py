"""A float file with marked ranges as an int8 file of the trained codes and scales.

An operation runs in int8 where LiteRT has it in int8, its kernel is on a trained grid,
and all that it takes and makes has a range. Everything else stays in float, between a
DEQUANTIZE and a QUANTIZE, and computes what was simulated.
"""

import dataclasses
from typing import Any

import numpy as np

from keras_dlopt.export.flat import Flat, Op
from keras_dlopt.export.kernels import Codes, find, fitted
from keras_dlopt.export.lattices import Lattices, cuts_nothing
from keras_dlopt.export.operators import (
    KEEPS_GRID,
    READS_SHAPE,
    WEIGHTED,
    runs_in_int,
    version,
)
from keras_dlopt.export.pairs import Lattice, drop_copied, on_trained, take_pairs
from keras_dlopt.export.twin import Kernel, Range


@dataclasses.dataclass(frozen=True)
class Island:
    """An operation that stays in float.

    Attributes:
        operator: its name in LiteRT.
        names: of what it makes and of its constants.
        reason: why.
    """

    operator: str
    names: tuple[str, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class Native:
    """An operation that runs in int8.

    Attributes:
        made: the operation of the file.
        simulated: the one in float that it stands for; it takes the same tensors in
            float, and constants as they were trained.
        names: of what it makes and of its constants.
    """

    made: Op
    simulated: Op
    names: tuple[str, ...]


@dataclasses.dataclass
class Written:
    """What became of a file's operations and weights.

    Attributes:
        kernels: the trained kernels whose codes are in the file.
        islands: what stays in float.
        steps: what runs in int8.
    """

    kernels: list[Kernel] = dataclasses.field(default_factory=list)
    islands: list[Island] = dataclasses.field(default_factory=list)
    steps: list[Native] = dataclasses.field(default_factory=list)


def to_int8(
    file: Flat, kernels: list[Kernel], ranges: list[Range], *, io: str = "float"
) -> Written:
    """Turns a float file with marked ranges into an int8 one, in place.

    Args:
        file: as the converter wrote it, with a pair of QUANTIZE and DEQUANTIZE for
            every trained range.
        kernels: the trained kernels.
        ranges: the trained ranges.
        io: type of the file's inputs and outputs, `"float"`, `"int8"` or `"int16"`.
    """
    return _Writer(file, kernels, ranges).run(io)


class _Writer:
    def __init__(self, file: Flat, kernels: list[Kernel], ranges: list[Range]):
        self.file, self.kernels = file, kernels
        self.views = take_pairs(file)
        self.bits = max((r.bits for r in ranges), default=8)
        marks = [Lattice(r.mark.scale, r.mark.zero_point) for r in ranges]
        trained = [Lattice(r.scale, r.zero_point, r.bits) for r in ranges]
        drop_copied(file, self.views, marks)
        self.views = on_trained(self.views, marks, trained)
        self.grids = Lattices(file, self.views, self.bits)
        self.ops: list[Op] = []
        self.written = Written()
        # The tensor that holds another one in int8, on a grid; and in float.
        self.in_int8: dict[tuple[int, Lattice], int] = {}
        self.in_float: dict[int, int] = {}
        self.native: dict[int, Lattice] = {}
        self.constants: dict[tuple[Any, ...], int] = {}
        self.found: dict[tuple[int, str], Codes | None] = {}

    def run(self, io: str) -> Written:
        if io != "float":
            for i in list(self.file.inputs):
                self._take_int8(i)
        for op in self.file.ops:
            reason = self._blocked(op)
            if reason is None:
                self._put_int8(op)
            else:
                self._put_float(op, reason)
        for o in list(self.file.outputs):
            if io != "float" and self._is_int8(o):
                self.file.rename(o, self._int8(o))
            else:
                self.file.rename(o, self._float(o))
        self.file.ops = self.ops
        return self.written

    def _take_int8(self, index: int) -> None:
        grid = self.grids.own.get(index)
        if self.file.is_float(index) and grid is not None:
            made = self._new(index, grid)
            self.file.rename(index, made)
            self._name(index, grid, made)

    def _blocked(self, op: Op) -> str | None:
        """Why an operation cannot run in int8; None if it can, "" if it need not."""
        floats = [i for i in (*op.inputs, *op.outputs) if self.file.is_float(i)]
        if not floats or op.name in READS_SHAPE:
            return ""
        if not runs_in_int(op.name, self.bits):
            return "LiteRT has it in float only"
        if not all(self._is_int8(i) for i in self.grids.moving(op)):
            return "what it takes has no quantizer"
        made = [o for o in op.outputs if self.file.is_float(o)]
        if not set(made) <= self.grids.own.keys():
            return "what it makes has no quantizer"
        if op.name in WEIGHTED and self._codes(op) is None:
            return "its kernel is not on an int8 grid"
        return None

    def _is_int8(self, index: int) -> bool:
        return index in self.native or self.grids.is_sure(index)

    def _codes(self, op: Op) -> Codes | None:
        key = (op.inputs[WEIGHTED[op.name][0]], op.name)
        if key not in self.found:
            weight = self.file.data(key[0])
            rows = None if weight is None else _rows(op.name, weight)
            self.found[key] = None if rows is None else find(rows, self.kernels)
        return self.found[key]

    def _put_float(self, op: Op, reason: str) -> None:
        if reason:
            self.written.islands.append(Island(op.name, self._names(op), reason))
        op.inputs = [self._taken_float(op, n) for n in range(len(op.inputs))]
        self.ops.append(op)

    def _names(self, op: Op) -> tuple[str, ...]:
        ends = [i for i in (*op.outputs, *op.inputs[1:]) if i >= 0]
        return tuple((self.file.tensors[i].name or b"").decode() for i in ends)

    def _taken_float(self, op: Op, place: int) -> int:
        index = op.inputs[place]
        values = self.file.data(index) if self.file.is_float(index) else None
        if values is None and op.name in READS_SHAPE and self._is_int8(index):
            return self._int8(index)
        if values is None:
            return self._float(index) if self.file.is_float(index) else index
        if values.ndim < 2 or index in self.in_float:
            return self.in_float.get(index, index)
        for axis in (0, values.ndim - 1):
            rows = np.moveaxis(values, axis, 0)
            codes = find(rows.reshape(len(rows), -1), self.kernels)
            if codes is not None and codes.kernel is not None:
                self.in_float[index] = self._unpacked(index, codes, rows.shape, axis)
                break
        return self.in_float.get(index, index)

    def _unpacked(self, index: int, codes: Codes, shape: Any, axis: int) -> int:
        """A trained kernel in int8, turned into float when the file is loaded."""
        assert codes.kernel is not None
        self.written.kernels.append(codes.kernel)
        values = np.moveaxis(codes.rows.reshape(shape), 0, axis)
        packed = self._constant(index, values, codes.scale, axis=axis)
        return self._append("DEQUANTIZE", packed, self.file.add(index, "float32"))

    def _put_int8(self, op: Op) -> None:
        moving, made = self.grids.moving(op), self._made(op)
        taken = [self._grid(i) for i in moving]
        if len(taken) == 1 and taken == made and cuts_nothing(op, taken[0]):
            self._name(op.outputs[0], made[0], self._int8(moving[0]))
            return
        self.written.steps.append(Native(op, op.copy(), self._names(op)))
        if op.name in WEIGHTED:
            self._put_kernel(op, taken[0], made[0])
        # Joined on one grid; what is not on it is rounded once more.
        joins = made[0] if op.name in KEEPS_GRID and len(taken) > 1 else None
        held = (made or taken)[0]
        op.inputs = [self._taken(op, i, held, joins) for i in op.inputs]
        grids = iter(made)
        for n, o in enumerate(op.outputs):
            if self.file.is_float(o):
                grid = next(grids)
                op.outputs[n] = self._new(o, grid)
                self._name(o, grid, op.outputs[n])
        op.version = version(op.name, op.version)
        if self.bits == 16 and hasattr(op.table.builtinOptions, "potScaleInt16"):
            op.table.builtinOptions.potScaleInt16 = False  # scales are of any size
        self.ops.append(op)

    def _made(self, op: Op) -> list[Lattice]:
        return [self.grids.own[o] for o in op.outputs if self.file.is_float(o)]

    def _grid(self, index: int) -> Lattice:
        grid = self.grids.at(index)
        assert grid is not None
        return grid

    def _name(self, index: int, grid: Lattice, holder: int) -> None:
        """Notes which tensor holds one of the float file in int8."""
        self.native[index], self.in_int8[index, grid] = grid, holder

    def _taken(self, op: Op, index: int, held: Lattice, joins: Lattice | None) -> int:
        """What an operation takes in place of a tensor of the float file."""
        if not self.file.is_float(index):
            return index
        values = self.file.data(index)
        if values is None:
            return self._int8(index, joins)
        if op.name not in KEEPS_GRID:
            top = max(float(np.abs(values).max(initial=0)), 1e-30)
            held = Lattice(np.float32(top / held.codes[1]), 0, held.bits)
        codes = np.rint(values.astype("float64") / held.scale) + held.zero_point
        return self._constant(index, np.clip(codes, *held.codes), held)

    def _put_kernel(self, op: Op, taken: Lattice, made: Lattice) -> None:
        at, at_bias = WEIGHTED[op.name]
        has_bias = len(op.inputs) > at_bias and op.inputs[at_bias] >= 0
        bias = self.file.data(op.inputs[at_bias]) if has_bias else None
        codes = self._codes(op)
        assert codes is not None
        codes = fitted(codes, bias, taken, made)
        if codes.kernel is not None:
            self.written.kernels.append(codes.kernel)
        shape = self.file.shape(op.inputs[at])
        last = op.name == "DEPTHWISE_CONV_2D"
        values = (codes.rows.T if last else codes.rows).reshape(shape)
        axis = len(shape) - 1 if last else 0
        op.inputs[at] = self._constant(op.inputs[at], values, codes.scale, axis=axis)
        if bias is not None:
            unit = taken.scale * codes.scale
            sums = np.rint(bias.astype("float64") / unit)
            op.inputs[at_bias] = self._constant(
                op.inputs[at_bias], sums, unit, kind=f"int{4 * taken.bits}"
            )

    def _constant(
        self,
        like: int,
        values: np.ndarray,
        grid: Lattice | np.ndarray,
        *,
        kind: str = "int8",
        axis: int = 0,
    ) -> int:
        scale, zero = grid, 0
        if isinstance(grid, Lattice):
            scale, zero = np.atleast_1d(grid.scale), grid.zero_point
            kind = grid.kind
        key = (like, kind, axis, zero, np.asarray(scale).tobytes())
        if key not in self.constants:
            self.constants[key] = self.file.add(
                like,
                kind,
                values=values.astype(kind),
                scale=scale,
                zero_point=zero,
                axis=axis,
            )
        return self.constants[key]

    def _int8(self, index: int, wanted: Lattice | None = None) -> int:
        """A tensor in int8, on its own grid or a wanted one."""
        grid = wanted or self.grids.at(index)
        assert grid is not None
        if (index, grid) not in self.in_int8:
            self.in_int8[index, grid] = self._rounded(index, grid)
        return self.in_int8[index, grid]

    def _rounded(self, index: int, grid: Lattice) -> int:
        view = self.views.get(index)
        if view is not None and view.grid == grid:
            source = view.source
            if self._is_int8(source):
                return self._int8(source, grid)
        elif self._is_int8(index) and self.grids.at(index) != grid:
            taken, made = self._int8(index), self._new(index, grid)
            return self._append("QUANTIZE", taken, made)
        else:
            source = index
        return self._append("QUANTIZE", self._float(source), self._new(source, grid))

    def _float(self, index: int) -> int:
        """A tensor in float."""
        if index not in self.views and index not in self.native:
            return index
        if index not in self.in_float:
            taken = self._int8(index)
            if taken not in self.in_float:
                made = self.file.add(index, "float32")
                self.in_float[taken] = self._append("DEQUANTIZE", taken, made)
            self.in_float[index] = self.in_float[taken]
        return self.in_float[index]

    def _append(self, name: str, taken: int, made: int) -> int:
        # A rounding from int8 to int8 came with the second version.
        kind = 1 if name == "QUANTIZE" and self.file.is_float(taken) else 2
        self.ops.append(self.file.new_op(name, kind, [taken], [made]))
        return made

    def _new(self, like: int, grid: Lattice) -> int:
        return self.file.add(
            like, grid.kind, scale=grid.scale, zero_point=grid.zero_point
        )


def _rows(name: str, weight: np.ndarray) -> np.ndarray:
    """A weight of the file as (output channels, rest)."""
    if name == "DEPTHWISE_CONV_2D":
        return np.moveaxis(weight, -1, 0).reshape(weight.shape[-1], -1)
    return weight.reshape(len(weight), -1)
