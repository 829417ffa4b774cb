"""What keeps a model from int8, and what can be folded on the way there."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_dlopt.graph.channels import by_output
from keras_dlopt.graph.folding import foldable
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.graph.trace import Trace
from keras_dlopt.graph.walk import as_functional
from keras_dlopt.int8.placement import place
from keras_dlopt.report.health.findings import Finding
from keras_dlopt.runtime.values import to_numpy

PREPARE = "small = dlopt.int8.prepare(model)"
FOLD = "small = dlopt.post_training.fold(model)"
WEIGHTS = "small = dlopt.post_training.dynamic_range(model)"
ESTIMATE = "dlopt.measure.npu_estimate('model.tflite')"
# The converter takes kernels whose largest weight is smaller for all zeros.
SMALLEST = 5e-7


def blockers(graph: Trace, *, npu: bool) -> Iterator[Finding]:
    """What LiteRT would compute in float, from the table that `int8_recipe` reads.

    Args:
        graph: of the model.
        npu: whether it is for an NPU that computes in int8 only.
    """
    for text in place(graph).problems:
        named = re.match(r"'([^']+)'", text)
        known = "split_activations" in text or "int8.prepare" in text
        remedy = PREPARE if known else WEIGHTS
        where = named[1] if named else "the outputs"
        more = " An NPU leaves it to the CPU." if npu and remedy == WEIGHTS else ""
        if remedy == WEIGHTS:
            more += " Its weights alone can be int8."
        yield Finding("blocks int8", where, text + more, {}, remedy)
    if npu:
        yield Finding(
            "estimate",
            "",
            "Cycles, flash and the operators that fall to the CPU are known once the "
            "int8 file is compiled.",
            {},
            ESTIMATE,
        )


def foldings(model: Any, graph: Trace | None) -> Iterator[Finding]:
    """Layers that can go into kernels, and what is done to the inputs first."""
    if as_functional(model) is None:
        return
    found = foldable(model, graph)
    count = len(found.folds)
    if count:
        first = found.folds[0]
        text = (
            f"{count} layers compute a x + b and can go into the kernels beside them, "
            f"such as this one into {first.into!r}."
        )
        yield Finding("foldable", first.path, text, {"layers": count}, FOLD)
    for scaling in found.scalings:
        low, high = scaling.range(0, 255)
        text = (
            "Scales the inputs by a constant and cannot go into the next layer, which "
            f"pads. Bytes from 0 to 255 become {low:.4g} to {high:.4g}: feed them so, "
            "or quantize with that range."
        )
        call = (
            "small = dlopt.transform(model, "
            f"dlopt.int8_recipe(model, input_range=({low:.7g}, {high:.7g})))"
        )
        figures = {"low": low, "high": high}
        yield Finding("input scaling", scaling.paths[0], text, figures, call)


def scales(model: Any) -> Iterator[Finding]:
    """Kernels with channels whose weights are too small for the converter."""
    for target in weight_targets(model):
        if not target.name.endswith("kernel") or len(target.shape or ()) < 2:
            continue
        most = np.abs(by_output(target, to_numpy(target.variable))).max(axis=1)
        count = int(((most > 0) & (most < SMALLEST)).sum())
        if count:
            yield Finding(
                "scale below int8",
                target.path,
                f"{count} of {len(most)} channels have no weight above {SMALLEST:g}; "
                f"the largest there is {most[most < SMALLEST].max():.2g}. The "
                "converter takes them for zeros.",
                {"channels": count, "of": len(most)},
                "small, report = dlopt.surgery.remove_dead(model)",
            )
