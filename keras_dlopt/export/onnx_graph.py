"""An ONNX graph that can be edited: constants, and what makes and reads each tensor."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

# What moves or drops values, so that what comes out is on the grid of what went in.
_KEEPS_GRID = {
    "Flatten",
    "Identity",
    "MaxPool",
    "Pad",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
# Axis of the output channels in the kernel of each operation.
_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


class Graph:
    """A `GraphProto` with its constants as arrays.

    Attributes:
        proto: what is edited.
        constants: name -> array.
    """

    def __init__(self, proto: Any):
        from onnx import numpy_helper

        self.proto = proto
        self.constants = {
            one.name: numpy_helper.to_array(one) for one in proto.initializer
        }
        self._makers = {out: node for node in proto.node for out in node.output}
        self._new: list[Any] = []

    def add(self, name: str, values: np.ndarray) -> str:
        """A constant of a new name; the same one where its values are there already."""
        from onnx import numpy_helper

        free, number = name, 0
        while free in self.constants:
            known = self.constants[free]
            if known.dtype == values.dtype and np.array_equal(known, values):
                return free
            number += 1
            free = f"{name}_{number}"
        self.constants[free] = values
        self.proto.initializer.append(numpy_helper.from_array(values, free))
        return free

    def kernel(self, node: Any) -> tuple[np.ndarray | None, int]:
        """The constant that a node multiplies its input with, and the output's axis."""
        axis = _AXIS.get(node.op_type)
        values = None if axis is None else self.constants.get(node.input[1])
        least = 2 if axis == 1 else 3
        return (values, axis or 0) if getattr(values, "ndim", 0) >= least else (None, 0)

    def grid(self, tensor: str) -> float | None:
        """The scale of the grid on which an activation lies; None if on none."""
        node = self._makers.get(tensor)
        while node is not None and node.op_type in _KEEPS_GRID:
            node = self._makers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return None
        return float(self.constants[node.input[1]])

    def dequantized(self, name: str, codes: np.ndarray, scales: Any, axis: int) -> str:
        """A constant of codes, and a node that gives their values; `axis` of scales."""
        from onnx import helper

        inputs = [self.add(f"{name}_codes", codes), self.add(f"{name}_scale", scales)]
        if codes.dtype == np.int8:
            zero = np.zeros(len(scales), "int8")
            # Not shared: ONNX Runtime turns it with the kernel to 8 bits without sign.
            inputs.append(self.add(f"{name}_zero", zero))
        made = f"{inputs[0]}_float"
        if made not in self._makers:
            node = helper.make_node("DequantizeLinear", inputs, [made], axis=axis)
            self._makers[made] = node
            self._new.append(node)
        return made

    def fold(self) -> None:
        """Puts what multiplies and shifts a layer's channels into its kernel and bias.

        That is a bias, or a normalization, that the converter left behind it.
        """
        self._as_gemm()
        for node in list(self.proto.node):
            if self.kernel(node)[0] is not None:
                while (after := self._scaling(node)) is not None:
                    self._merge(node, *after)

    def finish(self) -> None:
        """Puts the new nodes first, drops what nothing reads, and names it anew.

        The converter's names hold numbers that it counts through the whole process.
        """
        nodes = [*self._new, *self.proto.node]
        del self.proto.node[:]
        self.proto.node.extend(nodes)
        read = {name for node in _deep(nodes) for name in node.input}
        read |= {one.name for one in self.proto.output}
        kept = [one for one in self.proto.initializer if one.name in read]
        del self.proto.initializer[:]
        self.proto.initializer.extend(kept)
        del self.proto.value_info[:]
        self._rename()

    def _rename(self) -> None:
        kept = {one.name for one in (*self.proto.input, *self.proto.output)}
        new = {name: name for name in ("", *kept)}
        taken = set(new)
        for old in _names(self.proto):
            if old not in new:
                plain = re.sub(r"__\d+|:\d+$", "", old)
                parts = plain.split("/")[-2:]
                base = free = "/".join(re.sub(r"_\d+$", "", p) for p in parts)
                number = 0
                while free in taken:
                    number += 1
                    free = f"{base}_{number}"
                taken.add(free)
                new[old] = free
        self.proto.name = "model"
        self.proto.ClearField("doc_string")
        _renamed(self.proto, new)

    def _as_gemm(self) -> None:
        """Writes `MatMul` of matrices as `Gemm`, which has a bias."""
        ranks = {
            info.name: len(info.type.tensor_type.shape.dim)
            for info in (*self.proto.value_info, *self.proto.input)
        }
        for node in self.proto.node:
            weight, _ = self.kernel(node)
            matrices = getattr(weight, "ndim", 0) == ranks.get(node.input[0]) == 2
            if node.op_type == "MatMul" and matrices:
                node.op_type = "Gemm"

    def _reader(self, tensor: str) -> Any:
        """The one node that reads a tensor; None if there are others, or none."""
        readers = [node for node in _deep(self.proto.node) if tensor in node.input]
        is_output = any(one.name == tensor for one in self.proto.output)
        return readers[0] if len(readers) == 1 and not is_output else None

    def _scaling(self, node: Any) -> tuple[Any, np.ndarray] | None:
        """The next `Mul` or `Add` with one number a channel, and these numbers."""
        weight, axis = self.kernel(node)
        assert weight is not None
        rank = weight.ndim
        # Counted from the end: a constant of fewer dimensions has the last ones.
        channel = -1 if node.op_type in ("Gemm", "MatMul") else 1 - rank
        tensor = node.output[0]
        while (reader := self._reader(tensor)) is not None:
            if reader.op_type in ("Mul", "Add"):
                break
            moved = self._moved(reader, rank, channel)
            if moved is None:
                return None
            (rank, channel), tensor = moved, reader.output[0]
        if reader is None or (reader.op_type == "Add" and node.op_type == "MatMul"):
            return None
        others = [name for name in reader.input if name != tensor]
        values = self.constants.get(others[0]) if len(others) == 1 else None
        if values is None:
            return None
        wide = values.reshape((1,) * max(-channel - values.ndim, 0) + values.shape)
        one_a_channel = wide.size == wide.shape[channel] and wide.ndim <= rank
        if not one_a_channel or wide.size not in (1, weight.shape[axis]):
            return None
        return reader, np.broadcast_to(wide.ravel(), (weight.shape[axis],))

    def _moved(self, node: Any, rank: int, channel: int) -> tuple[int, int] | None:
        """Rank and channel axis after a node that only moves dimensions."""
        if node.op_type == "Transpose":
            (perm,) = (list(a.ints) for a in node.attribute if a.name == "perm")
            return rank, perm.index(channel % rank) - rank
        axes = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type == "Squeeze" and axes is not None:
            gone = {int(axis) % rank for axis in axes.ravel()}
            kept = [axis for axis in range(rank) if axis not in gone]
            if channel % rank in kept:
                return len(kept), kept.index(channel % rank) - len(kept)
        return None

    def _merge(self, node: Any, reader: Any, values: np.ndarray) -> None:
        weight, axis = self.kernel(node)
        assert weight is not None  # what `fold` asked for
        bias: Any = np.zeros(weight.shape[axis])
        if len(node.input) > 2:
            bias = self.constants[node.input[2]].astype("float64")
        if reader.op_type == "Mul":
            shape = [1] * weight.ndim
            shape[axis] = -1
            scaled = weight.astype("float64") * values.reshape(shape)
            node.input[1] = self.add(
                f"{node.input[1]}_folded", scaled.astype("float32")
            )
            bias = bias * values
        else:
            bias = bias + values
        if reader.op_type == "Add" or len(node.input) > 2:
            name = self.add(f"{node.name}_bias", bias.astype("float32"))
            del node.input[2:]
            node.input.append(name)
        (before,) = (name for name in reader.input if name not in self.constants)
        # What made the tensor makes the reader's now, which may be the graph's output.
        (made,) = reader.output
        maker = self._makers[before]
        maker.output[:] = [made if name == before else name for name in maker.output]
        self._makers[made] = maker
        self.proto.node.remove(reader)


def _inner(node: Any) -> Iterator[Any]:
    """The graphs inside a node: branches, and bodies of loops."""
    for one in node.attribute:
        yield from (one.g,) if one.HasField("g") else one.graphs


def _deep(nodes: Iterable[Any]) -> Iterator[Any]:
    """Nodes, and those of the graphs inside them."""
    for node in nodes:
        yield node
        for graph in _inner(node):
            yield from _deep(graph.node)


def _names(graph: Any) -> Iterator[str]:
    """Every tensor's name in the order of the file."""
    for one in (*graph.input, *graph.initializer):
        yield one.name
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in _inner(node):
            yield from _names(inner)
    for one in graph.output:
        yield one.name


def _renamed(graph: Any, new: dict[str, str]) -> None:
    for one in (*graph.input, *graph.initializer, *graph.output):
        one.name = new[one.name]
    del graph.value_info[:]
    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [new[name] for name in node.input]
        node.output[:] = [new[name] for name in node.output]
        for inner in _inner(node):
            _renamed(inner, new)
