"""TFLM's compressed files: kernels as tables of their values and short indices.

The writer is tflite-micro's own. An operator `TFLM_DECODE` before each kernel fills it
in when the network runs; only TFLM's interpreter knows that operator.
"""

import os

import numpy as np

from keras_dlopt.errors import ConfigError, ExportError
from keras_dlopt.export import micro
from keras_dlopt.export.flat import Flat
from keras_dlopt.export.operators import WEIGHTED
from keras_dlopt.export.quiet import silence

_MOST_BITS = 7
# Header of the data, and the operator, two tensors and a buffer in the file.
_OVERHEAD = 200


def compress(
    path: str | os.PathLike[str], batches: list[list[np.ndarray]] | None = None
) -> str:
    """Compresses a file in place, runs both in TFLM's interpreter, and says the sizes.

    Args:
        path: of an int8 file.
        batches: inputs in the file's order and types; None for random codes.

    Raises:
        ConfigError: if no kernel becomes smaller.
        ExportError: if an output differs.
        MissingDependencyError: without the package `tflite-micro`.
    """
    micro.require_package()
    from tflite_micro.tensorflow.lite.micro.compression import compress as packed_with
    from tflite_micro.tensorflow.lite.micro.compression import spec

    found = tables(Flat(path))
    if not found:
        raise ConfigError(
            "storage='lookup' needs large kernels of few values, and this model has "
            "none. Train with Cluster(16) >> FakeQuant(bits=8, per_channel=False)."
        )
    before = micro.outputs(path, batches)
    with open(path, "rb") as file:
        plain = file.read()
    asked = [
        spec.Tensor(
            subgraph=0,
            tensor=index,
            compression=[
                spec.LookUpTableCompression(
                    index_bitwidth=bits,
                    mode=spec.PerTensor() if axis is None else spec.PerChannel(axis),
                )
            ],
        )
        for index, (bits, axis) in found.items()
    ]
    with silence():
        packed = bytes(packed_with(plain, asked))
    with open(path, "wb") as file:
        file.write(packed)
    after = micro.outputs(path, batches)
    apart = sum(
        int((a != b).sum())
        for one, other in zip(before, after, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    if apart:
        raise ExportError(
            f"With tables for kernels TFLM returns {apart} other output codes. Leave "
            "storage out, and report it with the version of tflite-micro."
        )
    return (
        f"{len(found)} kernels as tables, {len(plain):,} to {len(packed):,} bytes, all "
        f"output codes of {len(after)} batches equal in TFLM's interpreter"
    )


def tables(file: Flat) -> dict[int, tuple[int, int | None]]:
    """Tensor -> bits of an index, and the axis with a table for each channel.

    A kernel with one scale has one table, and the axis is None. TFLM takes a table for
    each channel where there is a scale for each, whatever the file says. Kernels that
    would not become smaller are left out.
    """
    found: dict[int, tuple[int, int | None]] = {}
    for op in file.ops:
        index = op.inputs[WEIGHTED[op.name][0]] if op.name in WEIGHTED else -1
        codes = file.data(index) if index >= 0 and file.type(index) == "int8" else None
        if codes is None:
            continue
        grid = file.tensors[index].quantization
        axis = None if len(grid.scale) == 1 else int(grid.quantizedDimension)
        rows = codes.reshape(1, -1) if axis is None else np.moveaxis(codes, axis, 0)
        bits = max(_bits(row) for row in rows)
        size = codes.size * bits / 8 + 2**bits * len(rows) + _OVERHEAD
        if bits <= _MOST_BITS and size < codes.size:
            found[index] = (bits, axis)
    return found


def _bits(codes: np.ndarray) -> int:
    """Bits of an index into the different codes."""
    return max(1, int(np.unique(codes).size - 1).bit_length())
