"""What a .tflite file holds: its tensors and operations."""

import collections
import dataclasses
import math
import os
from typing import Any

import numpy as np

from keras_dlopt.errors import FormatError
from keras_dlopt.export.packing import unpacked
from keras_dlopt.export.runtime import litert_package


@dataclasses.dataclass(frozen=True)
class LiteTensor:
    """One tensor of the file. `data` is None for what is computed, or is float."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scales: np.ndarray
    zero_points: np.ndarray
    axis: int
    data: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operation of the file, with the tensors it reads and writes."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LiteFile:
    """What a .tflite file holds."""

    tensors: list[LiteTensor]
    operators: list[Operator]
    outputs: tuple[int, ...]
    inputs: tuple[int, ...] = ()


def read(path: str | os.PathLike[str]) -> LiteFile:
    """The tensors and operations of a .tflite file."""
    schema = litert_package().schema_py_generated
    with open(path, "rb") as file:
        data = file.read()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    types = _constants(schema.TensorType)
    codes = _constants(schema.BuiltinOperator)
    graph = model.subgraphs[0]
    operators = []
    for op in graph.operators:
        code = model.operatorCodes[op.opcodeIndex]
        name = codes[max(code.builtinCode, code.deprecatedBuiltinCode)]
        operators.append(Operator(name, _ints(op.inputs), _ints(op.outputs)))
    tensors = [_tensor(t, model.buffers, types) for t in graph.tensors]
    return LiteFile(tensors, operators, _ints(graph.outputs), _ints(graph.inputs))


def summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Constants and operations of a .tflite file, as plain data.

    Raises:
        FormatError: for a file that is none.
    """
    try:
        found = read(path)
    except OSError:
        raise
    except Exception as error:  # whatever its reader stumbles over
        raise FormatError(
            f"{str(path)!r} is no .tflite file, or a damaged one "
            f"({type(error).__name__}: {error}). Write it again with export.litert."
        ) from error
    made = {i for op in found.operators for i in op.outputs} | {*found.inputs, -1}
    constants = [
        {
            "name": one.name,
            "dtype": one.dtype.lower(),
            "shape": list(one.shape),
            "bytes": _bytes(one),
            "scales": len(one.scales),
        }
        for index, one in enumerate(found.tensors)
        if index not in made
    ]
    return {
        "file_bytes": os.path.getsize(path),
        "constants": constants,
        "operations": dict(collections.Counter(op.name for op in found.operators)),
    }


def _bytes(tensor: LiteTensor) -> int:
    elements = math.prod(tensor.shape)
    if tensor.dtype == "INT4":
        return -(-elements // 2)
    return elements * np.dtype(tensor.dtype.lower()).itemsize


def _constants(enum: Any) -> dict[int, str]:
    return {v: k for k, v in vars(enum).items() if isinstance(v, int)}


def _ints(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(int(v) for v in values)


def _tensor(t: Any, buffers: Any, types: dict[int, str]) -> LiteTensor:
    q = t.quantization
    scales = np.empty(0, "float32") if q is None or q.scale is None else q.scale
    zeros = np.empty(0, "int64") if q is None or q.zeroPoint is None else q.zeroPoint
    shape, dtype, data = _ints(t.shape), types[t.type], None
    raw = buffers[t.buffer].data
    if raw is not None and len(raw) and dtype == "INT4":
        data = unpacked(np.asarray(raw, "uint8"), shape)
    elif raw is not None and len(raw) and dtype in ("INT8", "INT32", "INT64"):
        data = np.asarray(raw, "uint8").view(dtype.lower()).reshape(shape)
    return LiteTensor(
        name=(t.name or b"").decode(),
        dtype=dtype,
        shape=shape,
        scales=np.asarray(scales, "float32"),
        zero_points=np.asarray(zeros),
        axis=0 if q is None else int(q.quantizedDimension),
        data=data,
    )


def output_steps(contents: LiteFile) -> list[float | None]:
    """The steps of the grids on which the outputs lie, in the order of the outputs."""
    made_by = {i: op for op in contents.operators for i in op.outputs}
    steps: list[float | None] = []
    for index in contents.outputs:
        if contents.tensors[index].dtype == "FLOAT32" and index in made_by:
            index = made_by[index].inputs[0]
        scales = contents.tensors[index].scales
        steps.append(float(scales[0]) if len(scales) == 1 else None)
    return steps
