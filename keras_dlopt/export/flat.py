"""A .tflite file as lists that can be edited, and written again."""

import copy
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_dlopt import _compat
from keras_dlopt.errors import ExportError, missing
from keras_dlopt.export.packing import AlignedBuffer, nibbles, pack, unpacked


def schema() -> Any:
    """The module that reads and writes the format of .tflite files.

    Raises:
        MissingDependencyError: if neither `ai-edge-litert` nor TensorFlow brings it.
    """
    try:
        from ai_edge_litert import schema_py_generated as found
    except ImportError:
        try:
            found = _compat.litert_schema()
        except ImportError as error:
            raise missing(
                "ai-edge-litert", extra="litert", purpose="Writing .tflite files"
            ) from error
    return found


@dataclasses.dataclass(eq=False)
class Op:
    """One operation of the main graph.

    Attributes:
        name: of the operator, such as `"CONV_2D"`.
        version: of the operator.
        inputs: indices of tensors; -1 for one that is left out.
        outputs: indices of tensors.
        table: the schema's object with the options.
        custom: the name of a custom operator.
    """

    name: str
    version: int
    inputs: list[int]
    outputs: list[int]
    table: Any
    custom: bytes | None = None

    def copy(self) -> "Op":
        """The same with lists of its own."""
        return dataclasses.replace(
            self,
            inputs=list(self.inputs),
            outputs=list(self.outputs),
            table=copy.copy(self.table),
        )


class Flat:
    """A .tflite file: its main graph as lists, the rest as it came.

    Attributes:
        tensors: the schema's `TensorT` objects of the main graph.
        ops: its operations, in the order in which they run.
        inputs: indices of the tensors that the caller sets.
        outputs: indices of the tensors that the caller reads.

    Args:
        path: of the file.

    Raises:
        ExportError: for constants outside the schema, as in files above 2 GB.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.schema = schema()
        with open(path, "rb") as file:
            found = self.schema.Model.GetRootAs(file.read(), 0)
        self.model = self.schema.ModelT.InitFromObj(found)
        if any((buffer.offset or 0) > 1 for buffer in self.model.buffers):
            raise ExportError(
                "The model is too large for one .tflite file: its constants come to "
                "more than 2 GB."
            )
        self.graph = self.model.subgraphs[0]
        self.tensors = self.graph.tensors
        self.inputs = [int(i) for i in self.graph.inputs]
        self.outputs = [int(i) for i in self.graph.outputs]
        self._codes = {
            v: k
            for k, v in vars(self.schema.BuiltinOperator).items()
            if isinstance(v, int)
        }
        self.ops = [self._op(table) for table in self.graph.operators or []]

    def _op(self, table: Any) -> Op:
        code = self.model.operatorCodes[table.opcodeIndex]
        name = self._codes[max(code.builtinCode, code.deprecatedBuiltinCode)]
        inputs, outputs = _ints(table.inputs), _ints(table.outputs)
        custom = code.customCode if name == "CUSTOM" else None
        return Op(name, code.version, inputs, outputs, table, custom)

    def new_op(
        self, name: str, version: int, inputs: list[int], outputs: list[int]
    ) -> Op:
        """An operation without options."""
        return Op(name, version, inputs, outputs, self.schema.OperatorT())

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of a tensor; an open size counts 1."""
        return tuple(_ints(self.tensors[index].shape))

    def type(self, index: int) -> str:
        """The type of a tensor, such as `"float32"`."""
        types = vars(self.schema.TensorType)
        (name,) = (k for k, v in types.items() if v == self.tensors[index].type)
        return str(name).lower()

    def is_float(self, index: int) -> bool:
        """Whether a tensor is of float32."""
        return index >= 0 and bool(
            self.tensors[index].type == self.schema.TensorType.FLOAT32
        )

    def data(self, index: int) -> np.ndarray | None:
        """The values of a constant; None for what is computed."""
        raw = self.model.buffers[self.tensors[index].buffer].data
        if raw is None or not len(raw):
            return None
        data = np.asarray(raw, "uint8")
        if self.type(index) == "int4":
            return unpacked(data, self.shape(index))
        return data.view(self.type(index)).reshape(self.shape(index))

    @property
    def input_names(self) -> dict[str, int]:
        """Name -> tensor, of the inputs; empty for a file without a signature."""
        return self._named("inputs")

    @property
    def output_names(self) -> dict[str, int]:
        """Name -> tensor, of the outputs; empty for a file without a signature."""
        return self._named("outputs")

    def _named(self, what: str) -> dict[str, int]:
        found = (self.model.signatureDefs or [None])[0]
        return {
            end.name.decode(): int(end.tensorIndex)
            for end in (getattr(found, what, None) or [])
        }

    def sign(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Gives the inputs and outputs names, in their order."""
        made = self.schema.SignatureDefT()
        made.signatureKey, made.subgraphIndex = b"serving_default", 0
        made.inputs = self._ends(inputs, self.inputs)
        made.outputs = self._ends(outputs, self.outputs)
        self.model.signatureDefs = [made]

    def _ends(self, names: Sequence[str], tensors: Sequence[int]) -> list[Any]:
        made = []
        for name, index in zip(names, tensors, strict=True):
            end = self.schema.TensorMapT()
            end.name, end.tensorIndex = name.encode(), index
            made.append(end)
        return made

    def add(
        self,
        like: int,
        kind: str,
        *,
        values: np.ndarray | None = None,
        scale: Any = (),
        zero_point: int = 0,
        axis: int = 0,
    ) -> int:
        """A new tensor in the shape of another one; returns its index.

        Args:
            like: index of the tensor with its name and shape.
            kind: its type, such as `"int8"`.
            values: of a constant; None for what is computed.
            scale: of its grid, one or one a channel; none without a grid.
            zero_point: of its grid.
            axis: of the channels.
        """
        source, made = self.tensors[like], self.schema.TensorT()
        made.name, made.shape = source.name, source.shape
        made.shapeSignature = source.shapeSignature
        made.type = getattr(self.schema.TensorType, kind.upper())
        if values is not None:
            values = nibbles(values) if kind == "int4" else values
            raw = np.frombuffer(np.ascontiguousarray(values).tobytes(), "uint8")
            self.model.buffers.append(AlignedBuffer(raw, self.schema))
            made.buffer = len(self.model.buffers) - 1
        scales = np.atleast_1d(np.asarray(scale, "float32"))
        if scales.size:
            made.quantization = self.schema.QuantizationParametersT()
            made.quantization.scale = scales
            made.quantization.zeroPoint = np.full(scales.size, zero_point, "int64")
            made.quantization.quantizedDimension = axis
        self.tensors.append(made)
        return len(self.tensors) - 1

    def rename(self, old: int, new: int) -> None:
        """Puts a tensor in another's place at the ends of the graph."""
        for ends in (self.inputs, self.outputs):
            ends[:] = [new if i == old else i for i in ends]
        for signature in self.model.signatureDefs or []:
            for end in (*signature.inputs, *signature.outputs):
                if end.tensorIndex == old:
                    end.tensorIndex = new

    def copy(self) -> "Flat":
        """The same in lists of its own: what is added there is not added here."""
        made = copy.copy(self)
        made.model = copy.copy(self.model)
        made.model.buffers = list(self.model.buffers)
        made.tensors, made.ops = list(self.tensors), list(self.ops)
        made.inputs, made.outputs = list(self.inputs), list(self.outputs)
        return made

    def write(self, path: str | os.PathLike[str], *, lean: bool = True) -> None:
        """Writes the file, without what nothing refers to; all here stays as it is.

        Args:
            path: of the file.
            lean: whether tensors lose their names and the converter's notes are left
                out; the names of inputs and outputs stay in the signature.
        """
        model = copy.copy(self.model)
        graphs = [self.graph, *self.model.subgraphs[1:]]
        model.subgraphs = [copy.copy(graph) for graph in graphs]
        used = {i for op in self.ops for i in (*op.inputs, *op.outputs) if i >= 0}
        keep = sorted(used | {*self.inputs, *self.outputs})
        new = {-1: -1} | {old: n for n, old in enumerate(keep)}
        for graph in model.subgraphs:
            main = graph is model.subgraphs[0]
            tensors = [self.tensors[i] for i in keep] if main else graph.tensors
            graph.tensors = [copy.copy(tensor) for tensor in tensors]
        self._renumber(model, new)
        self._number_operators(model, new)
        model.metadata = [copy.copy(note) for note in model.metadata or []]
        if lean:
            _drop_names(model)
        self._collect_buffers(model)
        with open(path, "wb") as file:
            file.write(pack(model))

    def _renumber(self, model: Any, new: dict[int, int]) -> None:
        """The ends of the main graph by the numbers that its tensors get."""
        graph = model.subgraphs[0]
        graph.inputs = np.asarray([new[i] for i in self.inputs], "int32")
        graph.outputs = np.asarray([new[i] for i in self.outputs], "int32")
        model.signatureDefs = copy.deepcopy(model.signatureDefs)
        for signature in model.signatureDefs or []:
            for end in (*signature.inputs, *signature.outputs):
                end.tensorIndex = new[end.tensorIndex]

    def _number_operators(self, model: Any, new: dict[int, int]) -> None:
        kinds: dict[Any, int] = {}
        made: list[Any] = []

        def table(op: Op, number: Callable[[int], int]) -> Any:
            key = (op.name, op.version, op.custom)
            if key not in kinds:
                kinds[key] = len(made)
                made.append(self._operator_code(op))
            found = copy.copy(op.table)
            found.opcodeIndex = kinds[key]
            found.inputs = np.asarray([number(i) for i in op.inputs], "int32")
            found.outputs = np.asarray([number(i) for i in op.outputs], "int32")
            return found

        main, *others = model.subgraphs
        main.operators = [table(op, new.__getitem__) for op in self.ops]
        for graph in others:
            graph.operators = [table(self._op(t), int) for t in graph.operators or []]
        model.operatorCodes = made

    def _operator_code(self, op: Op) -> Any:
        made = self.schema.OperatorCodeT()
        made.builtinCode = int(getattr(self.schema.BuiltinOperator, op.name))
        # Older readers know the first 127 operators by this field.
        made.deprecatedBuiltinCode = min(made.builtinCode, 127)
        made.version, made.customCode = op.version, op.custom
        return made

    def _collect_buffers(self, model: Any) -> None:
        """Keeps each constant that is used, equal ones once; the first is empty."""
        old, made = model.buffers, [AlignedBuffer(None, self.schema)]
        places: dict[bytes, int] = {}

        def place(index: int) -> int:
            raw = old[index].data
            if raw is None or not len(raw):
                return 0
            data = np.asarray(raw, "uint8")
            if (key := data.tobytes()) not in places:
                places[key] = len(made)
                made.append(AlignedBuffer(data, self.schema))
            return places[key]

        for graph in model.subgraphs:
            for tensor in graph.tensors:
                tensor.buffer = place(tensor.buffer)
        for note in model.metadata:
            note.buffer = place(note.buffer)
        model.metadataBuffer = None
        model.buffers = made


def _drop_names(model: Any) -> None:
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.name = None
            static = tensor.shapeSignature is not None and np.array_equal(
                tensor.shapeSignature, tensor.shape
            )
            if static:
                tensor.shapeSignature = None
            if tensor.quantization is not None:
                tensor.quantization = copy.copy(tensor.quantization)
                tensor.quantization.min = tensor.quantization.max = None
                if tensor.quantization.scale is None:
                    tensor.quantization = None
    kept = (b"min_runtime_version",)
    model.metadata = [m for m in model.metadata if m.name in kept]


def _ints(values: Any) -> list[int]:
    return [] if values is None else [int(v) for v in values]
