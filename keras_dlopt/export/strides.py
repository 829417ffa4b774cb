"""Long strides as short ones, for NPUs that step at most three places."""

from typing import Any

import numpy as np

from keras_dlopt.export.flat import Flat, Op

# Vela: "kernel stride must be in the range (1, 3)", of Ethos-U55 and U65.
LONGEST = 3


def shorten(file: Flat) -> tuple[str, ...]:
    """Gives depthwise convolutions of long strides short ones, with equal outputs.

    Average pooling is such a convolution here. A window that covers its whole input
    has one place, so that any stride does. Of other strides, such as 8, a factor of at
    most 3 is the convolution's own, and maximum poolings of size 1 take every second
    or third place of what it makes. Padding moves with the stride, so "same" ones that
    pad are left.

    Args:
        file: in int8, which is changed.

    Returns:
        What was done, a sentence an operation.
    """
    made: list[Op] = []
    done = []
    for op in file.ops:
        steps = _steps(file, op) if op.name == "DEPTHWISE_CONV_2D" else None
        if steps is None:
            made.append(op)
            continue
        stride = int(op.table.builtinOptions.strideH)
        made += _shortened(file, op, steps)
        done.append(
            f"DEPTHWISE_CONV_2D of stride {stride} became one of stride {steps[0]}"
            + "".join(f" and a pooling of every {s}. place" for s in steps[1:])
            + ", with equal outputs"
        )
    file.ops = made
    return tuple(done)


def _steps(file: Flat, op: Op) -> list[int] | None:
    """The short strides that together are the operation's; None to leave it."""
    options = op.table.builtinOptions
    stride = int(options.strideH)
    if max(stride, int(options.strideW)) <= LONGEST or stride != int(options.strideW):
        return None
    taken, kernel = file.shape(op.inputs[0])[1:3], file.shape(op.inputs[1])[1:3]
    if taken == kernel:
        return [1]
    if options.padding == file.schema.Padding.SAME:
        padded = any(
            n % stride or k > stride for n, k in zip(taken, kernel, strict=True)
        )
        if padded:
            return None
    return factors(stride)


def factors(stride: int) -> list[int] | None:
    """A stride as a product of factors up to 3, the largest first; None if none is.

    Example:
        >>> factors(8), factors(12), factors(5)
        ([2, 2, 2], [3, 2, 2], None)
    """
    found = []
    for factor in range(LONGEST, 1, -1):
        while stride % factor == 0:
            found.append(factor)
            stride //= factor
    return found if stride == 1 else None


def _shortened(file: Flat, op: Op, steps: list[int]) -> list[Op]:
    (last,) = op.outputs
    sizes = np.array(file.shape(op.inputs[0])[1:3])
    sizes = sizes - np.array(file.shape(op.inputs[1])[1:3])
    options, ops, stride = op.table.builtinOptions, [op], 1
    # What "same" pads depends on the stride, and these inputs need none.
    options.padding = file.schema.Padding.VALID
    for n, step in enumerate(steps):
        stride *= step
        to = last
        if n + 1 < len(steps):
            to = _resized(file, last, sizes // stride + 1)
        if n == 0:
            options.strideH = options.strideW = step
            op.outputs = [to]
        else:
            ops.append(_every(file, step, ops[-1].outputs[0], to))
    return ops


def _resized(file: Flat, like: int, sizes: np.ndarray) -> int:
    """A tensor on the grid of another one, with other height and width."""
    grid = file.tensors[like].quantization
    made = file.add(like, "int8", scale=grid.scale, zero_point=int(grid.zeroPoint[0]))
    batch, *_, channels = file.shape(like)
    tensor = file.tensors[made]
    tensor.shape = np.array([batch, *sizes, channels], "int32")
    tensor.shapeSignature = None
    tensor.name = (tensor.name or b"") + b"/every_%d" % sizes[0]
    return made


def _every(file: Flat, step: int, taken: int, made: int) -> Op:
    """An operation that keeps every second, or every third place of an image."""
    schema = file.schema
    op = file.new_op("MAX_POOL_2D", 2, [taken], [made])
    options: Any = schema.Pool2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideW = options.strideH = step
    options.filterWidth = options.filterHeight = 1
    op.table.builtinOptionsType = schema.BuiltinOptions.Pool2DOptions
    op.table.builtinOptions = options
    return op
