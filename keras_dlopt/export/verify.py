"""Reading an int8 .tflite file back: is it what was trained?"""

import os
import re
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ExportError
from keras_dlopt.export.contents import LiteFile, LiteTensor, Operator, read
from keras_dlopt.export.kernels import FULL_BIAS, SMALLEST_MULTIPLIER, WIDE_BIAS
from keras_dlopt.export.operators import GIVEN, WEIGHTED
from keras_dlopt.export.twin import Kernel, Range
from keras_dlopt.graph.affine import channel_factors
from keras_dlopt.graph.walk import layers_below, walk

# The converter folds a BatchNorm in another order of float32 operations.
_SCALE_RTOL = 1e-5


def check(
    path: str | os.PathLike[str],
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
    weights = list(_weights(contents))
    factors = list(_normalization_factors(model))
    for kernel in kernels:
        if not any(_holds(t, coarse, kernel, factors) for t, coarse in weights):
            raise ExportError(
                f"The trained codes and scales of {kernel.path!r} are not in the file. "
                "A layer between this one and its output quantizer was folded in a "
                "way that changes them: only BatchNormalization may stand there "
                "before the activation."
            )
    lost = [r.path for r in ranges if not any(_has(t, r) for t in contents.tensors)]
    if lost:
        raise ExportError(
            f"The trained ranges of {lost} are not in the file: the converter moved or "
            "dropped what marks them."
        )
    return sum({k.path: k.codes.size for k in kernels}.values())


def _weights(contents: LiteFile) -> Iterable[tuple[LiteTensor, np.ndarray]]:
    """Each constant of int8, and which of its channels may be on a coarser grid."""
    taken = set()
    for op in contents.operators:
        if op.name in WEIGHTED and (index := op.inputs[WEIGHTED[op.name][0]]) >= 0:
            taken.add(index)
            yield contents.tensors[index], _coarse(op, contents.tensors)
    for index, tensor in enumerate(contents.tensors):
        if index not in taken:
            yield tensor, np.zeros(1, bool)


def _coarse(op: Operator, tensors: list[LiteTensor]) -> np.ndarray:
    """Channels whose own grid the kernels cannot multiply with; see `kernels.fitted`.

    Their bias needs all of int32, or what they add to an output is next to nothing.
    """
    at, at_bias = WEIGHTED[op.name]
    scales = tensors[op.inputs[at]].scales
    given, made = tensors[op.inputs[GIVEN.get(op.name, 0)]], tensors[op.outputs[0]]
    if not (given.scales.size and made.scales.size):
        return np.zeros(1, bool)
    multiplier = scales * given.scales[0] / made.scales[0]
    coarse = multiplier <= SMALLEST_MULTIPLIER * (1 + _SCALE_RTOL)
    has_bias = len(op.inputs) > at_bias and op.inputs[at_bias] >= 0
    if not has_bias or (bias := tensors[op.inputs[at_bias]]).data is None:
        return np.asarray(coarse)
    full = WIDE_BIAS if bias.dtype == "INT64" else FULL_BIAS
    found: np.ndarray = coarse | (abs(bias.data) >= full)
    return found


def _has(tensor: LiteTensor, r: Range) -> bool:
    return (
        tensor.dtype == f"INT{r.bits}"
        and len(tensor.scales) == 1
        and bool(np.isclose(tensor.scales[0], r.scale, rtol=_SCALE_RTOL, atol=0))
        and int(tensor.zero_points[0]) == r.zero_point
    )


def layer_of(names: Iterable[str], model: keras.Model) -> str:
    """The last layer in the first of a file's names that tells of one."""
    paths = sorted(path for path, _, _ in walk(model) if path)
    layers = {path.rpartition("/")[2]: path for path in paths}
    for name in names:
        parts = re.split("[/;:]", name)
        # TensorFlow adds _1, _2 to all names of a graph, or to none.
        if parts[0] != model.name:
            parts = [re.sub(r"_\d+$", "", part) for part in parts]
        found = [layers[part] for part in parts if part in layers]
        if found:
            return repr(found[-1])
    return f"tensor {next(iter(names), '')!r}"


def _normalization_factors(model: keras.Model) -> Iterable[np.ndarray]:
    """Per BatchNorm, what the converter multiplies the kernel before it with."""
    for layer in layers_below(model, keras.layers.BatchNormalization):
        yield channel_factors(layer)[0].astype("float32")


def _holds(
    tensor: LiteTensor, coarse: np.ndarray, kernel: Kernel, factors: list[np.ndarray]
) -> bool:
    """Whether a tensor is the kernel, by itself or with a BatchNorm folded in."""
    if tensor.dtype not in ("INT8", "INT4") or tensor.data is None:
        return False
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
        _equal(rows, tensor.scales, coarse, kernel, factor)
        for factor in (ones, *factors)
        if len(factor) == len(rows)
    )


def _equal(
    rows: Any, scales: Any, coarse: Any, kernel: Kernel, factor: np.ndarray
) -> bool:
    # A negative factor turns the codes' signs; a factor of 0 leaves only zeros.
    wanted = np.broadcast_to(kernel.scale * np.abs(factor), factor.shape)
    scales = np.broadcast_to(scales, factor.shape)
    close = np.isclose(scales, wanted, rtol=_SCALE_RTOL, atol=0)
    wider = np.broadcast_to(coarse, factor.shape) & (scales >= wanted)
    left = ~(close | wider)
    # The scales tell most kernels apart; their codes can be millions.
    if np.any(kernel.codes[left & (factor != 0)]):
        return False
    codes = kernel.codes * np.sign(factor).astype("int32")[:, None]
    if not np.array_equal(rows[close], codes[close]):
        return False
    coarser = codes[~close] * (wanted / scales)[~close, None]
    return bool(np.all(np.abs(rows[~close] - coarser) <= 0.501))
