"""What the Edge TPU runs, by its published table; its compiler is not asked.

Source: https://coral.ai/docs/edgetpu/models-intro/#supported-operations, for runtime 14
(the compiler's version 16), and the page's requirements: tensors of 8 bits (biases of
32), constant sizes and parameters, and of more than three dimensions only the three
innermost larger than 1.
"""

from collections.abc import Callable, Iterator

import numpy as np

from keras_dlopt.export.flat import Flat, Op

REMARK = (
    "not compiled: every operation is in the Edge TPU's published table; its compiler, "
    "edgetpu_compiler, may still leave some to the CPU for their size"
)
Rule = Callable[[Flat, Op], str | None]


def problems(file: Flat) -> Iterator[tuple[int, str]]:
    """Number of each operation outside the table, with the reason."""
    for number, op in enumerate(file.ops):
        reason = _problem(file, op)
        if reason is not None:
            yield number, reason


def _problem(file: Flat, op: Op) -> str | None:
    if op.name not in RULES:
        return "it is not in the table of its operations"
    computed = [i for i in (*op.inputs, *op.outputs) if _computed(file, i)]
    for index in computed:
        if file.type(index) not in ("int8", "uint8"):
            return f"it takes or makes {file.type(index)}, and 8-bit integers are run"
        if any(n > 1 for n in file.shape(index)[:-3]):
            return (
                f"a tensor has the shape {file.shape(index)}, and only the three "
                "innermost sizes may be larger than 1"
            )
    for rule in RULES[op.name]:
        reason = rule(file, op)
        if reason is not None:
            return reason
    return None


def _computed(file: Flat, index: int) -> bool:
    return index >= 0 and file.data(index) is None


def _no_activation(file: Flat, op: Op) -> str | None:
    fused = getattr(op.table.builtinOptions, "fusedActivationFunction", 0)
    return "an activation is fused into it" if fused else None


def _equal_dilation(file: Flat, op: Op) -> str | None:
    options = op.table.builtinOptions
    one, other = options.dilationHFactor, options.dilationWFactor
    if one == other:
        return None
    return f"its dilation is {one} by {other}, and both must be equal"


def _joined(file: Flat, op: Op) -> str | None:
    values = [v for i in op.inputs if (v := file.data(i)) is not None]
    if not values or (len(op.inputs) == 2 and not np.any(values[0])):
        return None
    return "it joins a constant that is not all zeros to one other input"


def _axes(file: Flat, op: Op) -> list[int] | None:
    values = file.data(op.inputs[1])
    rank = len(file.shape(op.inputs[0]))
    return None if values is None else [int(v) % rank for v in np.ravel(values)]


def _no_batch(file: Flat, op: Op) -> str | None:
    axes = _axes(file, op)
    return "it reduces the batch" if axes is None or 0 in axes else None


def _depth_of_four(file: Flat, op: Op) -> str | None:
    """A mean along the channels needs a multiple of 4 of them."""
    axes, shape = _axes(file, op), file.shape(op.inputs[0])
    if axes is not None and len(shape) - 1 in axes and shape[-1] % 4:
        return f"it reduces {shape[-1]} channels, which is no multiple of 4"
    return None


def _no_padded_batch(file: Flat, op: Op) -> str | None:
    ends = file.data(op.inputs[1])
    return "it pads the batch" if ends is None or np.any(ends[0]) else None


def _one_row(file: Flat, op: Op) -> str | None:
    (made,) = op.outputs
    if sum(n > 1 for n in file.shape(made)) <= 1:
        return None
    return f"its output has the shape {file.shape(made)}, and only one row is made"


def _one_slope_a_channel(file: Flat, op: Op) -> str | None:
    shape = file.shape(op.inputs[1])
    if all(n == 1 for n in shape[:-1]):
        return None
    return f"its slopes have the shape {shape}; give PReLU shared_axes=[1, 2]"


def _whole_softmax(file: Flat, op: Op) -> str | None:
    shape = file.shape(op.inputs[0])
    if sum(n > 1 for n in shape) <= 1 and np.prod(shape) <= 16_000:
        return None
    return f"its input has the shape {shape}, and one row of up to 16,000 is run"


def _plain_slices(file: Flat, op: Op) -> str | None:
    steps, options = file.data(op.inputs[3]), op.table.builtinOptions
    plain = steps is not None and np.all(steps == 1)
    if plain and not options.ellipsisMask and not options.newAxisMask:
        return None
    return "it slices with steps, an ellipsis or new axes"


def _not_the_batch(file: Flat, op: Op) -> str | None:
    values = file.data(op.inputs[0]) if op.name == "SPLIT" else None
    axis = getattr(op.table.builtinOptions, "axis", None)
    axis = axis if values is None else int(np.ravel(values)[0])
    rank = len(file.shape(op.outputs[0]))
    return "it works along the batch" if axis is None or axis % rank == 0 else None


# Operator -> what the table says of it.
RULES: dict[str, tuple[Rule, ...]] = {
    "ADD": (),
    "AVERAGE_POOL_2D": (_no_activation,),
    "CONCATENATION": (_no_activation, _joined),
    "CONV_2D": (_equal_dilation,),
    "DEPTHWISE_CONV_2D": (_equal_dilation,),
    "EXPAND_DIMS": (),
    "FULLY_CONNECTED": (_one_row,),
    "L2_NORMALIZATION": (),
    "LOGISTIC": (),
    "MAXIMUM": (),
    "MAX_POOL_2D": (_no_activation,),
    "MEAN": (_no_batch, _depth_of_four),
    "MINIMUM": (),
    "MUL": (),
    "PACK": (_not_the_batch,),
    "PAD": (_no_padded_batch,),
    "PRELU": (_one_slope_a_channel,),
    "QUANTIZE": (),
    "REDUCE_MAX": (_no_batch,),
    "REDUCE_MIN": (_no_batch,),
    "RELU": (),
    "RELU6": (),
    "RELU_N1_TO_1": (),
    "RESHAPE": (),
    "RESIZE_BILINEAR": (),
    "RESIZE_NEAREST_NEIGHBOR": (),
    "RSQRT": (),
    "SLICE": (),
    "SOFTMAX": (_whole_softmax,),
    "SPACE_TO_DEPTH": (),
    "SPLIT": (_not_the_batch,),
    "SQUARED_DIFFERENCE": (),
    "SQUEEZE": (),
    "STRIDED_SLICE": (_plain_slices,),
    "SUB": (),
    "SUM": (_no_batch,),
    "TANH": (),
    "TRANSPOSE": (),
    "TRANSPOSE_CONV": (),
}
