"""The trained ranges in a float file: pairs of QUANTIZE and DEQUANTIZE.

A fake quantization with constant ends becomes such a pair when the converter writes a
file in float, with the exact scale and zero point. So the pairs are the marks of the
trained ranges, wherever the converter has moved and fused the operations around them.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_dlopt.export.flat import Flat

# The converter computes scales in another order of float32 operations.
_SAME = 1e-5


@dataclasses.dataclass(frozen=True)
class Lattice:
    """The grid of a tensor of integers: value = scale * (code - zero point)."""

    scale: np.float32
    zero_point: int
    bits: int = 8

    @property
    def kind(self) -> str:
        """The type of the tensor, such as `"int8"`."""
        return f"int{self.bits}"

    @property
    def codes(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    @property
    def low(self) -> float:
        """The value of the smallest code."""
        return float(self.scale) * (self.codes[0] - self.zero_point)

    @property
    def high(self) -> float:
        """The value of the largest code."""
        return float(self.scale) * (self.codes[1] - self.zero_point)


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor that is another one, rounded to a grid."""

    source: int
    grid: Lattice


def take_pairs(file: Flat) -> dict[int, View]:
    """Takes the pairs out of a file; returns what each made: tensor -> view.

    A view's source may be a view itself. Constants that the converter stored on a grid
    become float again, and so does what it left as integers before a product of floats.
    """
    _in_float(file)
    _complete(file)
    _squares_as_products(file)
    makers = {i: op for op in file.ops for i in op.outputs}
    views: dict[int, View] = {}
    gone = set()
    for op in file.ops:
        if op.name != "DEQUANTIZE":
            continue
        (taken,), (made,) = op.inputs, op.outputs
        before = makers.get(taken)
        grid = _grid(file, taken)
        if before is not None and before.name == "QUANTIZE" and grid is not None:
            views[made] = View(before.inputs[0], grid)
            gone |= {id(op), id(before)}
        elif grid is not None and (codes := file.data(taken)) is not None:
            shift = 128 if file.type(taken) == "uint8" else 0
            values = (codes.astype("float64") - shift - grid.zero_point) * grid.scale
            constant = file.add(made, "float32", values=values.astype("float32"))
            file.tensors[made] = file.tensors[constant]
            gone.add(id(op))
    file.ops = [op for op in file.ops if id(op) not in gone]
    return views


def on_trained(
    views: dict[int, View], marks: Sequence[Lattice], trained: Sequence[Lattice]
) -> dict[int, View]:
    """The views on the grids that were trained, where the marks stand for wider ones.

    Args:
        views: as they were marked.
        marks: the grid of each mark.
        trained: the grid that each stands for.
    """
    wide = [(m, t) for m, t in zip(marks, trained, strict=True) if m != t]

    def grid(marked: Lattice) -> Lattice:
        near = [(abs(float(m.scale / marked.scale) - 1), t) for m, t in wide]
        off, found = min(near, key=lambda pair: pair[0], default=(1.0, marked))
        return found if off < _SAME else marked

    return {made: View(view.source, grid(view.grid)) for made, view in views.items()}


def _squares_as_products(file: Flat) -> None:
    """`x * x`, which the converter made a SQUARE of: LiteRT has that in float only."""
    for n, op in enumerate(file.ops):
        if op.name == "SQUARE":
            file.ops[n] = file.new_op("MUL", 1, [op.inputs[0]] * 2, list(op.outputs))


def drop_copied(file: Flat, views: dict[int, View], trained: Sequence[Lattice]) -> None:
    """Takes out the pairs that the converter copied from before a MEAN to after it.

    They would round what training did not. A grid that two trained ranges have is left.
    """
    for op in file.ops:
        before = views.get(op.inputs[0]) if op.name == "MEAN" else None
        if before is None or _times(before.grid, trained) != 1:
            continue
        (mean,) = op.outputs
        copied = [m for m, view in views.items() if view == View(mean, before.grid)]
        for made in copied:
            del views[made]
            for taker in file.ops:
                taker.inputs = [mean if i == made else i for i in taker.inputs]
            file.rename(made, mean)


def _times(grid: Lattice, trained: Sequence[Lattice]) -> int:
    return sum(
        t.zero_point == grid.zero_point
        and bool(np.isclose(t.scale, grid.scale, rtol=1e-6, atol=0))
        for t in trained
    )


def _in_float(file: Flat) -> None:
    """Lets operations make floats, to be rounded, that make int8 already.

    `litert-converter` moves some of those between two pairs into int8 by itself.
    """
    for op in list(file.ops):
        if op.name in ("DEQUANTIZE", "QUANTIZE"):
            continue
        for place, made in enumerate(op.outputs):
            eight = file.type(made) in ("int8", "uint8")
            if eight and _grid(file, made) is not None:
                op.outputs[place] = file.add(made, "float32")
                quantize = file.new_op("QUANTIZE", 1, [op.outputs[place]], [made])
                file.ops.insert(file.ops.index(op) + 1, quantize)


def _complete(file: Flat) -> None:
    """Puts the DEQUANTIZE back that the converter fused into a following product."""
    for quantize in [op for op in file.ops if op.name == "QUANTIZE"]:
        (rounded,) = quantize.outputs
        bare = [
            op
            for op in file.ops
            if rounded in op.inputs and op.name not in ("DEQUANTIZE", "QUANTIZE")
        ]
        if not bare:
            continue
        made = file.add(rounded, "float32")
        for op in bare:
            op.inputs = [made if i == rounded else i for i in op.inputs]
        at = file.ops.index(quantize) + 1
        file.ops.insert(at, file.new_op("DEQUANTIZE", 1, [rounded], [made]))


def _grid(file: Flat, index: int) -> Lattice | None:
    found = file.tensors[index].quantization
    if found is None or found.scale is None or len(found.scale) != 1:
        return None
    shift = 128 if file.type(index) == "uint8" else 0
    return Lattice(np.float32(found.scale[0]), int(found.zeroPoint[0]) - shift)
