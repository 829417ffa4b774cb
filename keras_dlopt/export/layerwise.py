"""Each int8 operation of a file against what was simulated, on the same inputs.

Beside every operation of the file a second one in float is put, which takes the same
codes turned into float and the constants as they were trained, and whose results are
rounded to the same grid. The two run in one file, on what really flows there, so that
no difference adds up from layer to layer.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ExportError
from keras_dlopt.export.batches import encoded, in_order
from keras_dlopt.export.flat import Flat, Op
from keras_dlopt.export.operators import WEIGHTED
from keras_dlopt.export.runtime import End, LiteRT
from keras_dlopt.export.verify import layer_of
from keras_dlopt.export.writer import Native

# Values to compare: enough to meet all there is, few enough to take no time.
_VALUES = 1 << 23
_EXAMPLES = 16
# Simulation and kernel round once each. No operator of LiteRT's table needs more, with
# any of its kernels: `tests/export/test_operators.py` runs each on its own.
_ALLOWED = 1


@dataclasses.dataclass(frozen=True)
class Layerwise:
    """How far the int8 operations are from what was simulated, on equal inputs.

    Attributes:
        operations: how many were compared.
        examples: on how many examples.
        levels: the largest difference of one output, in levels of its grid.
        worst: the operation with the largest difference, and its layer.
        share: of its outputs that differ at all.
        rounding: the sum over all operations of their mean difference, in levels.
    """

    operations: int
    examples: int
    levels: int
    worst: str
    share: float
    rounding: float

    def __str__(self) -> str:
        return (
            f"{self.operations} int8 operations, each within {self.levels} of what "
            f"was simulated on {self.examples} examples; most in {self.worst}, where "
            f"{self.share:.2%} of the outputs differ"
        )


@dataclasses.dataclass(frozen=True)
class _Pair:
    """An output of an int8 operation, and the simulated one beside it.

    Attributes:
        step: the operation.
        made: the tensor of the file.
        simulated: the one beside it.
        given: whether its constants are those of the file, not those of training.
        bits: of its results.
    """

    step: Native
    made: int
    simulated: int
    given: bool
    bits: int = 8


# At 16 bits some interpolate in tables that are coarser than their results: softmax in
# 512 steps of exp from -10 to 0. Measured: 2 and 16 levels of 1 / 32768.
_TABLES_16 = {"SOFTMAX": 32, "TANH": 2}


def allowed(name: str, bits: int = 8) -> int:
    """How many levels an operator may be off what was simulated."""
    return _TABLES_16.get(name, _ALLOWED) if bits == 16 else _ALLOWED


def beside(file: Flat, steps: Sequence[Native]) -> tuple[Flat, list[_Pair]]:
    """A file that computes what was simulated beside each operation, for comparison.

    A constant that is no kernel, as in `x * c`, was not rounded in training and is in
    the file. Operations with one get two operations beside them: one with the constant
    of the file, which tells whether they compute what they should, and one with that of
    training, which tells what its rounding costs.

    Args:
        file: as the writer left it.
        steps: what it put there in int8.

    Returns:
        The file, and its further outputs in pairs.
    """
    both, pairs, in_float = file.copy(), list[_Pair](), dict[int, int]()
    for step in steps:
        constants = [
            i
            for i in step.simulated.inputs
            if both.is_float(i) and _is_constant(both, i)
        ]
        loose = bool(constants) and step.made.name not in WEIGHTED
        for given in (True, False) if loose else (False,):
            pairs += _put(both, step, in_float, given=given)
    both.outputs += [i for p in pairs for i in (p.made, p.simulated)]
    return both, pairs


def _is_constant(file: Flat, index: int) -> bool:
    return file.data(index) is not None


def _put(
    file: Flat, step: Native, in_float: dict[int, int], *, given: bool
) -> list[_Pair]:
    """Appends the simulated operation to a file."""
    op, pairs = step.simulated.copy(), []
    ends = zip(op.inputs, step.made.inputs, strict=True)
    op.inputs = [
        _as_float(file, taken, in_float)
        if file.is_float(index) and (given or not _is_constant(file, index))
        else index
        for index, taken in ends
    ]
    file.ops.append(op)
    for place, made in enumerate(step.made.outputs):
        if file.type(made) in ("int8", "int16"):
            op.outputs[place] = plain = file.add(made, "float32")
            simulated = _rounded(file, plain, made)
            bits = 16 if file.type(made) == "int16" else 8
            pairs.append(_Pair(step, made, simulated, given, bits))
    return pairs


def _as_float(file: Flat, taken: int, known: dict[int, int]) -> int:
    if taken not in known:
        known[taken] = file.add(taken, "float32")
        file.ops.append(file.new_op("DEQUANTIZE", 2, [taken], [known[taken]]))
    return known[taken]


def _rounded(file: Flat, plain: int, like: int) -> int:
    grid = file.tensors[like].quantization
    (zero,) = (int(z) for z in grid.zeroPoint)
    made = file.add(plain, file.type(like), scale=grid.scale, zero_point=zero)
    file.ops.append(file.new_op("QUANTIZE", 1, [plain], [made]))
    return made


def compare(
    file: Flat,
    steps: Sequence[Native],
    model: keras.Model,
    path: str | os.PathLike[str],
    data: Any = None,
    *,
    kernels: str = "XNNPACK",
) -> Layerwise | None:
    """Compares each int8 operation of a file with what was simulated.

    Args:
        file: as the writer left it.
        steps: what it put there in int8.
        model: that it was made from, for the names of layers.
        path: where a file may be written for the comparison.
        data: a batch of inputs; without it random ones in the range of each input, and
            zeros for inputs of whole numbers.
        kernels: of the runtime, one of `runtime.KERNELS`.

    Returns:
        None if nothing runs in int8, or an input has an open size and there is no data.

    Raises:
        ExportError: for an operation that is further off than its kernels round.
    """
    both, pairs = beside(file, steps)
    if not pairs:
        return None
    both.write(path)
    run = LiteRT(os.fspath(path), 1, kernels=kernels)
    most = np.ceil(_VALUES / sum(np.prod(both.shape(p.made)) for p in pairs))
    count = int(min(_EXAMPLES, most))
    if data is not None:
        arrays = [a[:count] for a in in_order(data, run.inputs, path=os.fspath(path))]
    elif any(None in end.shape[1:] for end in run.inputs):
        return None
    else:
        arrays = _random(both, run.inputs, count)
    ends = zip(arrays, run.inputs, strict=True)
    inputs = [encoded(a, end) for a, end in ends]
    levels, share, mean = _apart(run, inputs, len(file.outputs))
    # Judged is what an operation does with the constants that it has.
    twice = {id(p.step) for p in pairs if p.given}
    judged = np.array([p.given or id(p.step) not in twice for p in pairs])
    trained = np.array([not p.given for p in pairs])
    levels = np.where(judged, levels, -1)
    _raise_if_off(pairs, levels, model)
    worst = int(np.lexsort((share, levels))[-1])
    return Layerwise(
        operations=len(steps),
        examples=len(arrays[0]),
        levels=int(levels[worst]),
        worst=_name(pairs[worst].step, model),
        share=float(share[worst]),
        rounding=float(mean[trained].sum()),
    )


def _apart(
    run: LiteRT, inputs: Sequence[np.ndarray], skip: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each pair of outputs: largest difference, share that differs, mean."""
    parts = []
    for made in run.in_batches(inputs):
        found = made[skip:]
        pairs = zip(found[::2], found[1::2], strict=True)
        apart = [np.abs(a.astype("int32") - b) for a, b in pairs]
        parts.append([(d.max(initial=0), np.mean(d > 0), np.mean(d)) for d in apart])
    figures = np.asarray(parts)
    return figures[..., 0].max(0), figures[..., 1].mean(0), figures[..., 2].mean(0)


def _raise_if_off(
    pairs: Sequence[_Pair], levels: np.ndarray, model: keras.Model
) -> None:
    wrong = [
        f"{_name(pair.step, model)} by {apart:.0f}"
        for pair, apart in zip(pairs, levels, strict=True)
        if apart > allowed(pair.step.made.name, pair.bits)
    ]
    if wrong:
        raise ExportError(
            f"Operations of the file are more than {_ALLOWED} level off what was "
            f"simulated, on equal inputs: {'; '.join(wrong)}. Leave their quantizers "
            "out of the recipe: they stay in float then."
        )


def _name(step: Native, model: keras.Model) -> str:
    return f"{step.made.name} from {layer_of(step.names, model)}"


def _random(file: Flat, ends: Sequence[End], count: int) -> list[np.ndarray]:
    rng, found = np.random.default_rng(0), []
    for end, index in zip(ends, file.inputs, strict=True):
        shape = (count, *(int(n or 1) for n in end.shape[1:]))
        if end.dtype.kind != "f" and not end.scale:
            found.append(np.zeros(shape, end.dtype))
            continue
        low, high = _range(file, index)
        found.append(rng.uniform(low, high, shape).astype("float32"))
    return found


def _range(file: Flat, index: int) -> tuple[float, float]:
    """What the grid of an input holds; -1 to 1 for one in float."""
    readers: list[Op] = [op for op in file.ops if op.name == "QUANTIZE"]
    made = [op.outputs[0] for op in readers if op.inputs[0] == index]
    for tensor in (index, *made):
        grid = file.tensors[tensor].quantization
        if grid is not None and grid.scale is not None and len(grid.scale):
            scale, zero = float(grid.scale[0]), int(grid.zeroPoint[0])
            limits = np.iinfo(file.type(tensor))
            return scale * (limits.min - zero), scale * (limits.max - zero)
    return -1.0, 1.0
