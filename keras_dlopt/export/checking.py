"""All checks of one written .tflite file."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_dlopt.export.agreement import Agreement, agreement, worst
from keras_dlopt.export.contents import output_steps, read
from keras_dlopt.export.ends import Ends
from keras_dlopt.export.flat import Flat
from keras_dlopt.export.layerwise import Layerwise, compare
from keras_dlopt.export.noise import OutputNoise, examples, judge, simulated, squashed
from keras_dlopt.export.predictor import Predictor
from keras_dlopt.export.runtime import runtime_name
from keras_dlopt.export.twin import Range
from keras_dlopt.export.verify import check
from keras_dlopt.export.writer import Written
from keras_dlopt.transforms import TransformedModel


@dataclasses.dataclass(frozen=True)
class Made:
    """A file and what it was made from.

    Attributes:
        model: what was trained.
        plain: the same with baked weights, as it was converted.
        ranges: the trained ones.
        ends: of the model.
        file: as the writer left it.
        written: what the writer did.
    """

    model: keras.Model
    plain: keras.Model
    ranges: list[Range]
    ends: Ends
    file: Flat
    written: Written


@dataclasses.dataclass(frozen=True)
class Checked:
    """What was checked; see `ExportReport`."""

    codes: int = 0
    ranges: int = 0
    layers: Layerwise | None = None
    agreement: Agreement | None = None
    noise: OutputNoise | None = None
    runtime: str = ""


def checked(made: Made, path: str, scratch: str, data: Any, example: Any) -> Checked:
    """Reads a file back and compares it with what was trained.

    Args:
        made: what was written.
        path: of the file.
        scratch: where other files may be written.
        data: a batch of inputs on which outputs are compared; or None.
        example: a batch of inputs for the layers where there is no data; or None.

    Raises:
        ExportError: naming what differs.
    """
    codes = check(path, made.plain, made.ranges, made.written.kernels)
    sample = example if data is None else data
    layers = compare(made.file, made.written.steps, made.plain, scratch, sample)
    found = Checked(codes, len(made.ranges), layers, runtime=runtime_name())
    if data is None:
        return found
    predictor, ends = Predictor(path), made.ends
    given = dict(zip(ends.inputs, predictor.in_order(data), strict=True))
    inner = made.model
    inner = inner.model if isinstance(inner, TransformedModel) else inner
    short, squash = squashed(made.file, inner, ends)
    expected, before = simulated(made.model, ends, given, squash)
    short.write(scratch)
    count = examples(short)
    noise = judge(
        scratch,
        [a[:count] for a in given.values()],
        [a[:count] for a in before],
        rounding=_explained(layers, made),
    )
    agree = _agreement(path, expected, list(predictor.named(given).values()))
    return dataclasses.replace(found, agreement=agree, noise=noise)


def _explained(layers: Layerwise | None, made: Made) -> float:
    """Levels that the layers' roundings add up to at the outputs.

    At 16 bits all of the runtime's kernels are the same, so that their difference says
    nothing of how roundings grow; a level for each operation stands for it.
    """
    if layers is None:
        return 0.0
    wide = any(r.bits == 16 for r in made.ranges)
    return float(len(made.written.steps)) if wide else layers.rounding


def _agreement(
    path: str, expected: list[np.ndarray], got: list[np.ndarray]
) -> Agreement:
    parts = []
    for ours, theirs, step in zip(expected, got, output_steps(read(path)), strict=True):
        # Float outputs have no grid; a ten-thousandth of the largest stands for it.
        lsb = step or 1e-4 * max(float(np.abs(ours).max()), 1e-30)
        parts.append(agreement(ours, theirs, lsb=lsb))
    return worst(parts)
