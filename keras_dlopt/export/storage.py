"""How the weights of a file are stored: in four bits, half floats, dynamic ranges."""

import numpy as np

from keras_dlopt.errors import ConfigError
from keras_dlopt.export.flat import Flat, Op

STORAGE = ("int4", "float16", "dynamic", "lookup")
# The first version of each operator that takes four-bit weights.
_INT4 = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 10, "DEQUANTIZE": 6}
# Those that take int8 weights with float inputs, which they round at run time.
_DYNAMIC = {"CONV_2D": 5, "DEPTHWISE_CONV_2D": 6, "FULLY_CONNECTED": 12}
_KERNEL = {"DEQUANTIZE": 0}
# Smaller vectors, such as biases, stay in float.
_LEAST = 64
HALF = float(np.finfo("float16").max)


def store(file: Flat, storage: str | None) -> tuple[str, ...]:
    """Changes how a file's weights are stored, in place; says what was done.

    Args:
        file: in int8 or float, as the writer leaves it.
        storage: one of `STORAGE`; None to leave it.

    Raises:
        ConfigError: for a file without weights that can be stored so.
    """
    if storage in (None, "lookup"):  # which is what becomes of a written file
        return ()
    return {"int4": _int4, "float16": _float16, "dynamic": _dynamic}[storage](file)


def _int4(file: Flat) -> tuple[str, ...]:
    made: dict[int, int] = {}
    kept = 0
    for op in file.ops:
        at = _KERNEL.get(op.name, 1)
        if op.name not in _INT4 or file.type(op.inputs[at]) != "int8":
            continue
        codes = file.data(op.inputs[at])
        if codes is None:
            continue
        if codes.min(initial=0) < -8 or codes.max(initial=0) > 7:
            kept += 1
            continue
        op.inputs[at] = _once(file, made, op.inputs[at], codes, "int4")
        op.version = max(op.version, _INT4[op.name])
    if not made:
        raise ConfigError(
            "storage='int4' needs kernels of 4 bits, and none of this model's fits. "
            "Train or quantize with FakeQuant(bits=4), or leave storage out."
        )
    return (f"{len(made)} kernels in 4 bits, {kept} in 8",)


def _once(
    file: Flat, made: dict[int, int], index: int, codes: np.ndarray, kind: str
) -> int:
    if index not in made:
        grid = file.tensors[index].quantization
        made[index] = file.add(
            index,
            kind,
            values=codes,
            scale=grid.scale,
            axis=int(grid.quantizedDimension),
        )
    return made[index]


def _float16(file: Flat) -> tuple[str, ...]:
    made: dict[int, int] = {}
    before: list[Op] = []
    for op in file.ops:
        for n, index in enumerate(op.inputs):
            values = file.data(index) if file.is_float(index) else None
            if values is None or values.size < _LEAST:
                continue
            if np.abs(values).max() > HALF:
                raise ConfigError(
                    f"storage='float16' holds values up to {HALF:g}, and a weight of "
                    f"{op.name} has {np.abs(values).max():g}. Leave storage out."
                )
            if index not in made:
                half = file.add(index, "float16", values=values.astype("float16"))
                made[index] = file.add(index, "float32")
                before.append(file.new_op("DEQUANTIZE", 3, [half], [made[index]]))
            op.inputs[n] = made[index]
    if not made:
        raise ConfigError(
            "storage='float16' is for weights in float32, and this model has none of "
            f"at least {_LEAST} values. Leave storage out."
        )
    file.ops[:0] = before
    return (f"{len(made)} weights in float16",)


def _dynamic(file: Flat) -> tuple[str, ...]:
    packed = {
        op.outputs[0]: op.inputs[0]
        for op in file.ops
        if op.name == "DEQUANTIZE" and file.data(op.inputs[0]) is not None
    }
    done = 0
    for op in file.ops:
        if op.name not in _DYNAMIC or op.inputs[1] not in packed:
            continue
        op.inputs[1], done = packed[op.inputs[1]], done + 1
        op.version = max(op.version, _DYNAMIC[op.name])
        if op.name == "FULLY_CONNECTED":
            op.table.builtinOptions.asymmetricQuantizeInputs = True
    if not done:
        raise ConfigError(
            "storage='dynamic' is for int8 kernels beside float activations, and this "
            "model has none. Start from post_training.dynamic_range(model)."
        )
    used = {i for op in file.ops for i in op.inputs}
    file.ops = [
        op for op in file.ops if op.outputs[0] not in packed or op.outputs[0] in used
    ]
    return (f"{done} operations round what they take to int8 at run time",)
