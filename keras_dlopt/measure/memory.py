"""Memory of the tensors of a model that runs, by when each is made and last used."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from keras import layers

from keras_dlopt.graph.trace import Call, Trace
from keras_dlopt.graph.walk import is_functional

# They hand on what they take under another shape.
_VIEWS = (layers.Flatten, layers.Reshape)


class Usage(NamedTuple):
    """One operation: tensors it reads and tensors it makes, as numbers."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def peak(
    steps: Sequence[Usage],
    sizes: Mapping[int, int],
    *,
    inputs: Sequence[int],
    outputs: Sequence[int],
) -> tuple[int, int]:
    """The most memory that tensors take together, and the step at which they do.

    A tensor is there from the step that makes it to the last that reads it; the
    model's inputs from the start, its outputs to the end.

    Args:
        steps: in the order in which they run.
        sizes: bytes of each tensor; those that are not named take none.
        inputs: tensors that are there before.
        outputs: tensors that must be there at the end.

    Returns:
        Bytes, and the index of the step (-1 without any).

    Example:
        >>> steps = [Usage((0,), (1,)), Usage((1,), (2,)), Usage((0, 2), (3,))]
        >>> peak(steps, dict.fromkeys(range(4), 10), inputs=(0,), outputs=(3,))
        (30, 1)
    """
    first = dict.fromkeys(inputs, 0)
    last = dict.fromkeys(inputs, 0)
    for at, step in enumerate(steps):
        for tensor in step.outputs:
            first.setdefault(tensor, at)
            last.setdefault(tensor, at)
        last |= dict.fromkeys((t for t in step.inputs if t in first), at)
    last |= dict.fromkeys((t for t in outputs if t in first), len(steps) - 1)
    change = np.zeros(len(steps) + 1, "int64")
    for tensor, begin in first.items():
        change[begin] += sizes.get(tensor, 0)
        change[max(last[tensor], begin) + 1 if steps else 0] -= sizes.get(tensor, 0)
    taken = np.cumsum(change[:-1])
    if not len(taken):
        return sum(sizes.get(t, 0) for t in {*inputs, *outputs}), -1
    at = int(taken.argmax())
    return int(taken[at]), at


def of_trace(graph: Trace, calls: Sequence[Call]) -> tuple[int, str]:
    """The peak of a model's activations in bytes, and the path of the call at it.

    Tensors between layers count; what a layer needs inside for itself does not, nor
    that a runtime may compute in place or fuse operations. Batch size 1.

    Args:
        graph: of a model.
        calls: those that count as operations, in order: none inside loops.
    """
    alias: dict[int, int] = {}

    def root(tensor: int) -> int:
        while tensor in alias:
            tensor = alias[tensor]
        return tensor

    steps, names = [], []
    for call in calls:
        if call.composite and is_functional(call.layer):
            continue  # all that it does is seen inside
        view = isinstance(call.layer, _VIEWS) or type(call.layer).__name__ == "Reshape"
        if view and len(call.inputs) == len(call.outputs) == 1:
            if call.outputs[0] != call.inputs[0]:
                alias[call.outputs[0]] = call.inputs[0]
            continue
        ends = (tuple(root(t) for t in part) for part in (call.inputs, call.outputs))
        steps.append(Usage(*ends))
        names.append(call.path)
    sizes = {n: bytes_of(*spec) for n, spec in enumerate(graph.specs)}
    given, made = (
        tuple(root(t) for t in ends) for ends in (graph.inputs, graph.outputs)
    )
    most, at = peak(steps, sizes, inputs=given, outputs=made)
    return most, names[at] if at >= 0 else ""


def bytes_of(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor.

    Example:
        >>> bytes_of((1, 3, 3), "float16")
        18
    """
    bits = int("".join(c for c in dtype.split("_")[0] if c.isdigit()) or 8)
    bits = 8 if dtype.startswith("float8") else bits
    return math.prod(shape) * bits // 8
