"""What a file is written for: what the target runs, and what it was checked with."""

import copy
import dataclasses
import os
from typing import Any

import numpy as np

from keras_dlopt.errors import ConfigError, ExportError
from keras_dlopt.export import edgetpu, micro, strides
from keras_dlopt.export.flat import Flat
from keras_dlopt.export.micro import Unsupported
from keras_dlopt.measure.npu import NpuEstimate, npu_estimate, require_vela

# Arm's NPUs by the size for which Vela compiles: support does not depend on it.
ETHOS = {
    "ethos-u55": "ethos-u55-128",
    "ethos-u65": "ethos-u65-256",
    "ethos-u85": "ethos-u85-256",
}
TARGETS = ("xnnpack", *ETHOS, "tflm", "edgetpu")
# They have no float arithmetic.
INTEGER_ONLY = (*ETHOS, "edgetpu")


@dataclasses.dataclass(frozen=True)
class OnTarget:
    """What the check for a target found.

    Attributes:
        remarks: a sentence for each thing that was done or measured.
        npu: Vela's estimate, for an Ethos-U.
    """

    remarks: tuple[str, ...] = ()
    npu: NpuEstimate | None = None


def check_options(
    target: str, io: str | None, batch_size: int | None, storage: str | None
) -> str:
    """The type of a file's ends for a target.

    Raises:
        ConfigError: for ends, weights or an open batch that the target does not have.
        MissingDependencyError: without the package that checks for the target.
    """
    if storage == "lookup" and target != "tflm":
        raise ConfigError(
            "storage='lookup' is for TFLM, which alone decodes it. Pass target='tflm', "
            "or leave storage out."
        )
    if target == "xnnpack":
        return io or "float"
    if io == "float":
        raise ConfigError(
            f"target={target!r} has int8 inputs and outputs. Leave io out, or pass "
            "io='int8'."
        )
    if batch_size is None:
        raise ConfigError(
            f"target={target!r} needs to know all sizes. Pass a batch_size, such as 1."
        )
    if storage is not None and target in INTEGER_ONLY:
        raise ConfigError(
            f"target={target!r} takes int8 weights, not storage={storage!r}. Leave "
            "storage out: codes of 4 bits are in int8 then."
        )
    if target in ETHOS:
        require_vela()
    if target == "tflm":
        micro.require_package()
    return io or "int8"


def own_operations(file: Flat) -> Flat:
    """A copy of a file whose operations and their options can be changed."""
    made = file.copy()
    made.ops = [op.copy() for op in file.ops]
    for op in made.ops:
        op.table.builtinOptions = copy.copy(op.table.builtinOptions)
    return made


def fit(file: Flat, target: str) -> tuple[str, ...]:
    """Rewrites a file in place for a target, with equal outputs; what was done."""
    return strides.shorten(file) if target in ETHOS else ()


def check(
    file: Flat,
    path: str | os.PathLike[str],
    target: str,
    *,
    batches: list[list[np.ndarray]] | None,
    layer: Any,
    name: str,
) -> OnTarget:
    """Checks a written file for a target.

    Args:
        file: what was written, with the names of its tensors.
        path: where it was written.
        target: one of `TARGETS`.
        batches: inputs to compare outputs on, in the file's types; None for random
            ones.
        layer: a function from names of the file to the layer they came from.
        name: of the model.

    Raises:
        ExportError: for operations that the target does not run.
    """
    if target in ETHOS:
        return _ethos(file, path, target, layer, name)
    if target == "edgetpu":
        problems = [Unsupported(n, why) for n, why in edgetpu.problems(file)]
        _refuse(problems, file, "The Edge TPU", layer, name)
        return OnTarget((edgetpu.REMARK,))
    if target == "tflm":
        found = micro.compare(path, batches)
        if isinstance(found, Unsupported):
            _refuse([found], file, "TFLM", layer, name)
        return OnTarget((str(found),))
    return OnTarget()


def _ethos(
    file: Flat, path: str | os.PathLike[str], target: str, layer: Any, name: str
) -> OnTarget:
    estimate = npu_estimate(path, accelerator=ETHOS[target])
    made = {
        (file.tensors[o].name or b"").decode(): n
        for n, op in enumerate(file.ops)
        for o in op.outputs
    }
    problems = [Unsupported(made.get(o, -1), why) for _, o, why in estimate.cpu]
    _refuse(problems, file, f"The {target.title()}", layer, name)
    return OnTarget(
        (
            f"Vela compiled it for {estimate.accelerator} and left nothing to the CPU: "
            f"{estimate.cycles:,} cycles, {estimate.flash:,} bytes of flash, "
            f"{estimate.sram:,} of SRAM by its estimate; nothing was run",
        ),
        estimate,
    )


def _refuse(
    problems: list[Unsupported], file: Flat, who: str, layer: Any, name: str
) -> None:
    """Raises for operations that a target does not run."""
    if not problems:
        return
    told = []
    for problem in problems:
        op = file.ops[problem.number] if problem.number >= 0 else None
        what = "an operation"
        if op is not None:
            ends = [i for i in (*op.outputs, *op.inputs[1:]) if i >= 0]
            names = [(file.tensors[i].name or b"").decode() for i in ends]
            what = f"{op.custom.decode() if op.custom else op.name} from {layer(names)}"
        told.append(f"{what}: {problem.reason.rstrip('.')}")
    raise ExportError(
        f"{who} cannot hold {name!r}: {'; '.join(dict.fromkeys(told))}. Replace these "
        "layers. Or write it without target, for the runtime of CPUs."
    )
