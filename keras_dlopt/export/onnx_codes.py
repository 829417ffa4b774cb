"""Trained int8 codes and grids in an ONNX graph: quantize and dequantize around floats.

The graph that was traced has a pair `QuantizeLinear`, `DequantizeLinear` for every
activation quantizer, and float kernels: the trained codes times their scales, times a
factor per output channel where a normalization was folded in. Both become exact int8.
"""

import dataclasses
from typing import Any

import numpy as np

from keras_dlopt.errors import ExportError
from keras_dlopt.export.kernels import Codes, coarser, find
from keras_dlopt.export.onnx_graph import Graph
from keras_dlopt.export.twin import Kernel, Range

# A bias of int32 above this needs a coarser scale of its channel.
_LARGEST_BIAS = 2.0**30
# A pair further than this from every trained range is another one's: of a level and of
# the scale.
_OTHERS = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What was put into a graph.

    Attributes:
        kernels: the trained ones whose codes are in the file.
        missing: paths of those that stay in float, on their grid.
        ranges: number of trained activation ranges.
    """

    kernels: tuple[Kernel, ...] = ()
    missing: tuple[str, ...] = ()
    ranges: int = 0


def put(graph: Graph, ranges: list[Range], kernels: list[Kernel]) -> Found:
    """Puts the trained codes, scales and zero points into an ONNX graph.

    Args:
        graph: of the file; it is changed.
        ranges: the trained ranges, each a pair of the graph.
        kernels: the trained kernels.

    Raises:
        ExportError: naming the ranges that are not in the graph.
    """
    seen = _put_ranges(graph, ranges) if ranges else set()
    lost = [r.path for r in ranges if (r.scale, r.zero_point) not in seen]
    if lost:
        raise ExportError(
            f"The trained ranges of {lost} are not in the file: the converter moved or "
            "dropped what marks them."
        )
    nodes = list(graph.proto.node)
    known = {id(k) for node in nodes for k in _put_kernel(graph, node, kernels)}
    return Found(
        tuple(k for k in kernels if id(k) in known),
        tuple(k.path for k in kernels if id(k) not in known),
        len(ranges),
    )


def _put_ranges(graph: Graph, ranges: list[Range]) -> set[tuple[Any, int]]:
    """Gives each pair the trained numbers; returns those that were put."""
    put = set()
    for node in graph.proto.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = (graph.constants[name] for name in node.input[1:3])
        trained = _nearest(float(scale), int(zero) - 128, ranges)
        if trained is None:
            continue
        put.add((trained.scale, trained.zero_point))
        # ONNX Runtime has int8 kernels on x86 for activations of uint8 only.
        code = trained.zero_point + 128
        node.input[1] = graph.add("scale", np.array(trained.scale, "float32"))
        node.input[2] = graph.add(f"zero_{code}", np.array(code, "uint8"))
        del node.attribute[:]  # the axis, which one scale does not have
    return put


def _nearest(scale: float, zero: int, ranges: list[Range]) -> Range | None:
    """The trained range of a pair, whose numbers were rounded in another order."""

    def distance(r: Range) -> float:
        return abs(float(r.scale) / scale - 1) + abs(r.zero_point - zero)

    found = min(ranges, key=distance)
    return found if distance(found) < _OTHERS else None


def _put_kernel(graph: Graph, node: Any, kernels: list[Kernel]) -> list[Kernel]:
    """Puts the codes of a node's kernel and bias; returns the kernels that it is."""
    weight, axis = graph.kernel(node)
    if weight is None:
        return []
    # As in Keras: the channels of the input come last.
    moved = np.moveaxis(weight, axis, 0)
    rows = np.moveaxis(moved, 1, -1).reshape(len(moved), -1)
    equal = [k for k in kernels if k.codes.shape == rows.shape and _is(rows, k)]
    found = find(rows, equal[:1])
    grid = graph.grid(node.input[0])
    if found is None or (not equal and grid is None):
        return []
    bias = None
    if len(node.input) > 2 and grid is not None:
        bias = graph.constants.get(node.input[2])
    if bias is not None:
        found = _room_for(bias, found, np.float64(grid))
    name = equal[0].path.replace("/", "_") if equal else "constant"
    back = found.rows.reshape(len(moved), *moved.shape[2:], moved.shape[1])
    codes = np.moveaxis(np.moveaxis(back, -1, 1), 0, axis)
    scales = np.broadcast_to(found.scale, len(rows)).astype("float32")
    node.input[1] = graph.dequantized(name, np.ascontiguousarray(codes), scales, axis)
    if bias is not None:
        unit = (np.float32(grid) * scales).astype("float32")
        whole = np.rint(bias / np.where(unit > 0, unit, 1).astype("float64"))
        node.input[2] = graph.dequantized(
            f"{name}_bias", whole.astype("int32"), unit, 0
        )
    return equal


def _is(rows: np.ndarray, kernel: Kernel) -> bool:
    found = find(rows, [kernel])
    return found is not None and found.kernel is kernel


def _room_for(bias: np.ndarray, found: Codes, grid: np.float64) -> Codes:
    """Coarser scales where the bias would leave int32 behind: channels of no weight."""
    return coarser(found, np.abs(bias.astype("float64")) / (grid * _LARGEST_BIAS))
