"""Reading an int8 .tflite file back: is it what was trained?"""

import dataclasses
import os
import re
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ExportError
from keras_dlopt.export.runtime import litert_package
from keras_dlopt.export.twin import Kernel, Range
from keras_dlopt.select import activation_targets

# Scales are recomputed by the converter in another order of float32 operations.
_SCALE_RTOL = 1e-5


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of the file. `data` is None for what is computed."""

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
class Contents:
    """What a .tflite file holds."""

    tensors: list[Tensor]
    operators: list[Operator]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well two sets of outputs agree.

    Attributes:
        examples: number of them.
        top1: share whose largest output is the same.
        top1_clear: the same share among examples whose two largest outputs are more
            than one level apart; 1.0 if there are none.
        ties: examples with a margin of at most one level.
        largest_lsb: largest difference, in levels of the output's grid.
    """

    examples: int
    top1: float
    top1_clear: float
    ties: int
    largest_lsb: int


def agreement(expected: np.ndarray, got: np.ndarray, *, lsb: float) -> Agreement:
    """Compares outputs of shape (examples, ...) on a grid of step `lsb`.

    Example:
        >>> a = np.array([[0.0, 1.0], [0.5, 0.25]])
        >>> agreement(a, a + 0.25, lsb=0.25).largest_lsb
        1
    """
    expected = expected.reshape(len(expected), -1)
    got = got.reshape(len(got), -1)
    steps = np.rint(np.abs(expected - got) / lsb)
    same = expected.argmax(1) == got.argmax(1)
    ordered = np.sort(expected, axis=1)
    margin = np.full(len(expected), np.inf)
    if expected.shape[1] > 1:
        margin = np.rint((ordered[:, -1] - ordered[:, -2]) / lsb)
    clear = margin > 1
    return Agreement(
        examples=len(expected),
        top1=float(same.mean()),
        top1_clear=float(same[clear].mean()) if clear.any() else 1.0,
        ties=int((~clear).sum()),
        largest_lsb=int(steps.max(initial=0)),
    )


def worst(parts: list[Agreement]) -> Agreement:
    """The agreement of several outputs taken together: the worst of each figure."""
    return Agreement(
        examples=parts[0].examples,
        top1=min(p.top1 for p in parts),
        top1_clear=min(p.top1_clear for p in parts),
        ties=max(p.ties for p in parts),
        largest_lsb=max(p.largest_lsb for p in parts),
    )


def read(path: str | os.PathLike) -> Contents:
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
    return Contents(tensors, operators, _ints(graph.outputs))


def _constants(enum: Any) -> dict[int, str]:
    return {v: k for k, v in vars(enum).items() if isinstance(v, int)}


def _ints(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(int(v) for v in values)


def _tensor(t: Any, buffers: Any, types: dict[int, str]) -> Tensor:
    q = t.quantization
    scales = np.empty(0, "float32") if q is None or q.scale is None else q.scale
    zeros = np.empty(0, "int64") if q is None or q.zeroPoint is None else q.zeroPoint
    shape, dtype, data = _ints(t.shape), types[t.type], None
    raw = buffers[t.buffer].data
    if raw is not None and len(raw) and dtype == "INT8":
        data = np.asarray(raw, "uint8").view("int8").reshape(shape)
    return Tensor(
        name=t.name.decode(),
        dtype=dtype,
        shape=shape,
        scales=np.asarray(scales, "float32"),
        zero_points=np.asarray(zeros),
        axis=0 if q is None else int(q.quantizedDimension),
        data=data,
    )


def output_steps(contents: Contents) -> list[float | None]:
    """The steps of the grids on which the outputs lie, in the order of the outputs."""
    made_by = {i: op for op in contents.operators for i in op.outputs}
    steps: list[float | None] = []
    ends = sorted(
        contents.outputs,
        key=lambda i: (len(contents.tensors[i].name), contents.tensors[i].name),
    )
    for index in ends:
        if contents.tensors[index].dtype == "FLOAT32" and index in made_by:
            index = made_by[index].inputs[0]
        scales = contents.tensors[index].scales
        steps.append(float(scales[0]) if len(scales) == 1 else None)
    return steps


def check(
    path: str | os.PathLike,
    model: keras.Model,
    ranges: list[Range],
    kernels: list[Kernel],
) -> int:
    """Compares a file with what was trained; returns the number of equal codes.

    Args:
        path: of the file.
        model: the baked model that was converted.
        ranges: its trained activation ranges.
        kernels: its trained kernels.

    Raises:
        ExportError: naming the first layers that differ, and what to do.
    """
    contents = read(path)
    _check_float(contents, model)
    weights = [t for t in contents.tensors if t.data is not None]
    factors = list(_normalization_factors(model))
    for kernel in kernels:
        if not any(_holds(t, kernel, factors) for t in weights):
            raise ExportError(
                f"The trained codes and scales of {kernel.path!r} are not in the file. "
                "A layer between this one and its output quantizer was folded in a "
                "way that changes them: only BatchNormalization may stand there "
                "before the activation."
            )
    lost = [r.path for r in ranges if not any(_has(t, r) for t in contents.tensors)]
    if lost:
        raise ExportError(
            f"The trained ranges of {lost} are not in the file: the converter gave "
            "these tensors another tensor's range, as it does for what goes into a "
            "concatenation, a pooling or a reshape. Leave these paths out of the "
            "recipe, or start from int8_recipe(model)."
        )
    return sum(k.codes.size for k in kernels)


def _has(tensor: Tensor, r: Range) -> bool:
    return (
        tensor.dtype == "INT8"
        and len(tensor.scales) == 1
        and bool(np.isclose(tensor.scales[0], r.scale, rtol=_SCALE_RTOL, atol=0))
        and int(tensor.zero_points[0]) == r.zero_point
    )


def _check_float(contents: Contents, model: keras.Model) -> None:
    found = []
    for op in contents.operators:
        ends = [contents.tensors[i] for i in (*op.inputs, *op.outputs) if i >= 0]
        is_float = any(t.dtype == "FLOAT32" for t in ends)
        if is_float and op.name not in ("QUANTIZE", "DEQUANTIZE"):
            # The model's outputs are named for the file; then the weights tell.
            names = [contents.tensors[i].name for i in (*op.outputs, *op.inputs[1:])]
            found.append(f"{op.name} from {_layer_of(names, model)}")
    if found:
        raise ExportError(
            f"These operations stayed in float: {'; '.join(dict.fromkeys(found))}. "
            "Each operation needs a quantizer on what it takes and on what it returns; "
            "add the missing '<layer>/output' to the recipe, or start from "
            "int8_recipe(model)."
        )


def _layer_of(names: list[str], model: keras.Model) -> str:
    """The layer that the tensors' names tell of: the last one in the first that does."""
    paths = {t.path.rpartition("/")[0] for t in activation_targets(model)}
    layers = {path.rpartition("/")[2]: path for path in sorted(paths)}
    for name in names:
        parts = re.split("[/;:]", name)
        # TensorFlow adds _1, _2 to all names of a graph, or to none.
        if parts[0] != model.name:
            parts = [re.sub(r"_\d+$", "", part) for part in parts]
        found = [layers[part] for part in parts if part in layers]
        if found:
            return repr(found[-1])
    return f"tensor {names[0]!r}"


def _normalization_factors(model: keras.Model) -> Iterable[np.ndarray]:
    """Per BatchNorm, what the converter multiplies the kernel before it with."""
    for layer in {t.path: t.layer for t in activation_targets(model)}.values():
        if isinstance(layer, keras.layers.BatchNormalization):
            variance = keras.ops.convert_to_numpy(layer.moving_variance)
            factor = 1 / np.sqrt(np.asarray(variance, "float32") + layer.epsilon)
            if layer.scale:
                factor = factor * keras.ops.convert_to_numpy(layer.gamma)
            yield factor


def _holds(tensor: Tensor, kernel: Kernel, factors: list[np.ndarray]) -> bool:
    """Whether a tensor is the kernel, by itself or with a BatchNorm folded in."""
    assert tensor.data is not None
    if tensor.data.size != kernel.codes.size:
        return False
    if tensor.data.ndim <= tensor.axis or not len(tensor.scales):
        return False
    rows = np.moveaxis(tensor.data, tensor.axis, 0)
    if rows.shape[0] != len(kernel.codes):
        return False
    rows = rows.reshape(len(rows), -1)
    ones = np.ones(len(rows), "float32")
    return any(
        _equal(rows, tensor.scales, kernel, factor)
        for factor in (ones, *factors)
        if len(factor) == len(rows)
    )


def _equal(rows, scales, kernel: Kernel, factor: np.ndarray) -> bool:
    # A negative factor turns the codes' signs; a factor of 0 leaves only zeros.
    expected = kernel.codes * np.sign(factor)[:, None]
    if not np.array_equal(rows, expected):
        return False
    wanted = kernel.scale * np.abs(factor)
    used = np.any(expected, axis=1)
    close = np.isclose(scales, wanted, rtol=_SCALE_RTOL, atol=0)
    return bool(np.all(close | ~used))
