"""What a .tflite file costs, counted from its operations."""

import dataclasses
import math
import os

from keras_dlopt.export.contents import LiteFile, Operator, read
from keras_dlopt.measure.memory import Usage, bytes_of, peak

# Where an operation has its kernel among its inputs; the bias comes after it.
_KERNEL = {
    "CONV_2D": 1,
    "CONV_3D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "FULLY_CONNECTED": 1,
    "TRANSPOSE_CONV": 1,
}
# They multiply, and how much cannot be told from their shapes alone.
_UNKNOWN = ("CALL", "CUSTOM", "IF", "LSTM", "RNN", "STABLEHLO", "SVDF", "WHILE")


@dataclasses.dataclass(frozen=True)
class FileCosts:
    """What a file costs, for one call with the batch that it was written with.

    Attributes:
        parameters: elements of kernels and biases, shared ones once.
        macs: multiply-accumulates.
        peak: most bytes that its tensors take together; a reshape takes none.
        uncounted: operations whose multiply-accumulates are not known.
    """

    parameters: int
    macs: int
    peak: int
    uncounted: tuple[str, ...] = ()


def litert_costs(path: str | os.PathLike[str]) -> FileCosts:
    """Counts parameters, multiply-accumulates and activation memory of a file.

    Raises:
        MissingDependencyError: without the package `ai-edge-litert`.
    """
    contents = read(path)
    weights: dict[int, int] = {}
    for op in contents.operators:
        if op.name in _KERNEL:
            ends = op.inputs[1:2] + op.inputs[3 if "TRANSPOSE" in op.name else 2 :]
            weights |= {t: math.prod(contents.tensors[t].shape) for t in ends if t >= 0}
    unknown = dict.fromkeys(
        op.name for op in contents.operators if any(n in op.name for n in _UNKNOWN)
    )
    return FileCosts(
        parameters=sum(weights.values()),
        macs=sum(_macs(op, contents) for op in contents.operators),
        peak=_peak(contents),
        uncounted=tuple(unknown),
    )


def _macs(op: Operator, contents: LiteFile) -> int:
    def shape(tensor: int) -> tuple[int, ...]:
        return contents.tensors[tensor].shape

    made = math.prod(shape(op.outputs[0])) if op.outputs else 0
    if op.name == "BATCH_MATMUL":
        # Rows times columns times what is summed, whichever is transposed.
        one, two = math.prod(shape(op.inputs[0])), math.prod(shape(op.inputs[1]))
        batch = math.prod(shape(op.outputs[0])[:-2])
        return math.isqrt(one * two * made // batch) if batch else 0
    if op.name not in _KERNEL:
        return 0
    kernel = shape(op.inputs[_KERNEL[op.name]])
    if op.name == "FULLY_CONNECTED":
        return made * kernel[-1]
    if op.name == "DEPTHWISE_CONV_2D":
        return made * math.prod(kernel[1:3])
    if op.name == "TRANSPOSE_CONV":
        return math.prod(shape(op.inputs[2])) * math.prod(kernel[:-1])
    return made * math.prod(kernel[:-1] if op.name == "CONV_3D" else kernel[1:])


def _peak(contents: LiteFile) -> int:
    alias: dict[int, int] = {}

    def roots(tensors: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(alias.get(t, t) for t in tensors)

    steps = []
    for op in contents.operators:
        if op.name == "RESHAPE":
            alias[op.outputs[0]] = alias.get(op.inputs[0], op.inputs[0])
        else:
            steps.append(Usage(roots(op.inputs), roots(op.outputs)))
    sizes = {
        n: bytes_of(tensor.shape, tensor.dtype.lower())
        for n, tensor in enumerate(contents.tensors)
    }
    outputs = roots(contents.outputs)
    return peak(steps, sizes, inputs=contents.inputs, outputs=outputs)[0]
