"""Judging the outputs of a file by how far the runtime's own kernels disagree.

LiteRT has several kernels of one operator, and in int8 they round differently. What is
within a level in one layer grows through depth, to dozens of levels in networks that
were not trained. So the difference between model and file says nothing by itself: it
is too large where it is larger than that between two ways of running the same file.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ExportError, FormatError
from keras_dlopt.export.batches import decoded, encoded
from keras_dlopt.export.ends import Ends
from keras_dlopt.export.flat import Flat, Op
from keras_dlopt.export.runtime import KERNELS, End, LiteRT, runtime_name
from keras_dlopt.graph import hooks
from keras_dlopt.graph.kinds import squashes
from keras_dlopt.graph.trace import Call, trace

# Rounding flips at random: the same noise is larger in one draw than in another.
_MARGIN = 1.5
# Values to compare; ResNet50 has 11 million in an example of 224 x 224.
_VALUES = 1 << 25
_EXAMPLES = 64
_BATCH = 32
# Outputs that end in float have no grid: this part of their range stands for a level.
_LEVELS = 255


@dataclasses.dataclass(frozen=True)
class OutputNoise:
    """The difference between model and file beside that of the runtime to itself.

    All in levels of the output's grid, before a softmax or sigmoid at the end.

    Attributes:
        levels: the largest difference between the model and the file.
        own: the largest between two of the runtime's kernels on the file.
        rounding: what the layers' differences from the simulation add up to.
        allowed: the most that `levels` may be.
        examples: on how many examples.
        kernels: on which `levels` was measured, and with which it was compared.
    """

    levels: int
    own: int
    rounding: int
    allowed: int
    examples: int
    kernels: tuple[str, ...]

    def __str__(self) -> str:
        others = " and ".join(self.kernels[1:])
        return (
            f"{self.levels} levels between model and file on {self.examples} examples; "
            f"{self.kernels[0]} and {others} kernels differ by {self.own}"
        )


def examples(file: Flat) -> int:
    """On how many examples the outputs of a file are judged."""
    values = sum(math.prod(file.shape(o)) for op in file.ops for o in op.outputs)
    return min(_EXAMPLES, math.ceil(_VALUES / max(values, 1)))


def squashed(
    file: Flat, model: keras.Model, ends: Ends
) -> tuple[Flat, list[Call | None]]:
    """A file that ends before the softmax or sigmoid of an output.

    Args:
        file: as the writer left it.
        model: what was trained, without its transforms.
        ends: of the model.

    Returns:
        The file, and for each output the model's call that it leaves out.
    """
    short, graph = file.copy(), trace(model, ends.specs)
    makers, calls = {i: op for op in file.ops for i in op.outputs}, graph.producers()
    found: list[Call | None] = []
    for place, (index, tensor) in enumerate(
        zip(file.outputs, graph.outputs, strict=True)
    ):
        call, op = calls.get(tensor), makers.get(_on_grid(index, makers))
        squashing = op is not None and op.name in ("LOGISTIC", "SOFTMAX")
        if op is None or not squashing or call is None or not squashes(call.layer):
            call = None
        else:
            index = op.inputs[0]
        short.outputs[place] = _on_grid(index, makers)
        found.append(call)
    short.model.signatureDefs = None
    return short, found


def _on_grid(index: int, makers: dict[int, Op]) -> int:
    """A tensor before it was turned into float."""
    op = makers.get(index)
    return op.inputs[0] if op is not None and op.name == "DEQUANTIZE" else index


def simulated(
    model: keras.Model,
    ends: Ends,
    given: dict[str, np.ndarray],
    squash: Sequence[Call | None],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The outputs of a model, and the same before their softmax or sigmoid.

    Args:
        model: what was trained.
        ends: of the model.
        given: name -> inputs.
        squash: for each output, the call that is its softmax or sigmoid, or None.
    """
    total = len(next(iter(given.values())))
    made: list[list[np.ndarray]] = []
    for start in range(0, total, _BATCH):
        seen: dict[int, Any] = {}
        taps = [_tap(call, seen) for call in squash if call is not None]
        part = {name: a[start : start + _BATCH] for name, a in given.items()}
        with hooks.hooked(taps):
            outputs = model(ends.structured(part), training=False)
        flat = keras.tree.flatten(outputs)
        before = [seen.get(id(c), o) for c, o in zip(squash, flat, strict=True)]
        made.append([keras.ops.convert_to_numpy(o) for o in (*flat, *before)])
    joined = [np.concatenate(parts) for parts in zip(*made, strict=True)]
    return joined[: len(squash)], joined[len(squash) :]


def _tap(call: Call, seen: dict[int, Any]) -> tuple[Any, hooks.Hook]:
    def note(x: Any) -> Any:
        seen[id(call)] = x
        return x

    return call.layer, hooks.on("input", note, site=call.site)


def judge(
    path: str | os.PathLike[str],
    arrays: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    *,
    rounding: float = 0.0,
) -> OutputNoise:
    """Judges the outputs of a file by how far the runtime's own kernels disagree.

    Args:
        path: of the file; its outputs are on their grids.
        arrays: inputs, in order.
        expected: what the model returns for them, in order.
        rounding: what the layers' differences from the simulation add up to.

    Raises:
        ExportError: if model and file differ by more than the kernels and the layers
            explain.
    """
    # An output next to the middle between two levels is one level off anyway.
    explained = 1 + math.ceil(rounding)
    first, *others = KERNELS
    run = LiteRT(os.fspath(path), 1, kernels=first)
    steps = [_step(e, o) for e, o in zip(expected, run.outputs, strict=True)]
    made = {first: _values(run, arrays)}
    levels = _apart(expected, made[first], steps)
    own, allowed = 0, explained
    for kernels in others:
        try:
            run = LiteRT(os.fspath(path), 1, kernels=kernels)
            values = _values(run, arrays)
        except FormatError:
            continue  # the reference kernels lack a few operators
        own = max(own, *(_apart(one, values, steps) for one in made.values()))
        allowed = math.floor(_MARGIN * own) + explained
        made[kernels] = values
        if levels <= allowed:
            break
    names = tuple(made)
    if levels > allowed:
        raise ExportError(
            "The file computes something else than the model: their outputs are "
            f"{levels} levels apart, while the kernels of {runtime_name()} differ by "
            f"{own} among themselves ({', '.join(names)}) and rounding in the layers "
            f"explains {explained}. Pass verify=False to write the file unchecked, and "
            "look for the place where they part."
        )
    return OutputNoise(levels, own, explained, allowed, len(arrays[0]), names)


def _values(run: LiteRT, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    ends = zip(arrays, run.inputs, strict=True)
    parts = list(run.in_batches([encoded(a, end) for a, end in ends]))
    total = len(arrays[0])
    return [
        decoded(np.concatenate(made)[:total], end)
        for made, end in zip(zip(*parts, strict=True), run.outputs, strict=True)
    ]


def _step(expected: np.ndarray, end: End) -> float:
    return end.scale or max(float(np.ptp(expected)), 1e-30) / _LEVELS


def _apart(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], steps: Sequence[float]
) -> int:
    """The largest difference of any output, in levels."""
    return max(
        int(np.rint(np.abs(x.reshape(len(x), -1) - y.reshape(len(y), -1)) / step).max())
        for x, y, step in zip(a, b, steps, strict=True)
    )
