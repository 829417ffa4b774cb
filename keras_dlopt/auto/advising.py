"""What can be done to a model, by numbers that were counted, in some seconds."""

import dataclasses
import time
from typing import Any

import keras
import numpy as np

from keras_dlopt.codecs.entropy import entropy_bits
from keras_dlopt.graph.channels import by_output
from keras_dlopt.int8.recipes import kernel_targets
from keras_dlopt.report import Examination, doctor, plain
from keras_dlopt.runtime.values import to_numpy

_MOST = 127  # of 8-bit codes, both ways
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Part:
    """One layer's share of a model.

    Attributes:
        path: of the layer.
        bytes: of its own weights, in memory.
        share: of all weights' bytes.
        zeros: share of zeros among its kernels' elements; 0 without kernels.
        entropy: bits that one code of 8 bits of its kernels carries, without regard to
            neighbours; 0 without kernels.
        int8: whether LiteRT has an int8 form of the layer, at once or as
            `int8.prepare` writes it, from the table that `int8_recipe` reads; None for
            a layer without kernels.
    """

    path: str
    bytes: int
    share: float
    zeros: float
    entropy: float
    int8: bool | None


@dataclasses.dataclass(frozen=True)
class Advice:
    """What was counted in a model, and which calls it speaks for.

    Attributes:
        examination: all that `report.doctor` found.
        parts: the layers with weights, the largest first.
        bytes: of all weights, in memory.
        kernel_bytes: of kernels and embeddings among them.
        int8_share: share of those bytes in layers that LiteRT can run in int8.
        zeros: share of zeros among the kernels' elements.
        coded_bytes: of kernels as codes of 8 bits, one scale an output channel, by an
            ideal coder that looks at no neighbours, the scales included; and of all
            other weights as they are. Nothing is said about what that costs.
        candidates: a sentence with its numbers, and the call.
        seconds: that it took.
    """

    examination: Examination
    parts: tuple[Part, ...]
    bytes: int
    kernel_bytes: int
    int8_share: float
    zeros: float
    coded_bytes: int
    candidates: tuple[tuple[str, str], ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data: dict[str, Any] = plain(
            {k: v for k, v in vars(self).items() if k != "examination"}
        )
        return {**data, "examination": self.examination.to_dict()}

    def __str__(self) -> str:
        lines = [f"{self.bytes:,} bytes of weights"]
        lines += [f"{p.share:6.1%}  {p.path}" for p in self.parts[:_SHOWN]]
        lines += [f"{text}\n    {call}" for text, call in self.candidates]
        return "\n".join(lines)


def advise(model: keras.Model) -> Advice:
    """Says what can be done to a model, without training or trying any of it.

    Where the bytes are, what carries nothing, which kernels LiteRT can run in int8 and
    how many bits their codes carry. What a step costs in accuracy is not guessed:
    `compress` and `sensitivity` measure it on data.

    Args:
        model: a built Keras model, which stays as it is.

    Raises:
        ModelError: for a model that is not built, or whose inputs are not known.

    Example:
        >>> net = keras.Sequential([keras.Input((64,)),
        ...     keras.layers.Dense(32, activation="relu", name="a"),
        ...     keras.layers.Dense(10, name="b")])
        >>> found = advise(net)
        >>> found.bytes, found.parts[0].path, found.int8_share
        (9640, 'a', 1.0)
    """
    began = time.perf_counter()
    found = doctor(model)
    blocked = [
        f.where
        for f in found.findings
        if f.kind == "blocks int8" and "int8.prepare" not in f.remedy
    ]
    paths = [layer.path for layer in found.costs.by_layer]
    kernels: dict[str, list[np.ndarray]] = {}
    for target in kernel_targets(model):
        around = [path for path in paths if target.path.startswith(f"{path}/")]
        value = by_output(target, to_numpy(target.variable))
        kernels.setdefault(max(around, key=len, default=""), []).append(value)
    whole = max(found.costs.bytes, 1)
    parts, coded, held, able, zero, elements = [], whole, 0, 0, 0, 0
    for layer in found.costs.by_layer:
        if not layer.bytes:
            continue
        own = kernels.get(layer.path, [])
        size = sum(one.size for one in own)
        nbytes = sum(one.nbytes for one in own)
        zeros = sum(int(one.size - np.count_nonzero(one)) for one in own)
        bits = sum(map(_bits, own))
        runs = not any(_inside(layer.path, where) for where in blocked)
        scales = sum(4 * len(one) for one in own)
        coded += round(bits / 8) + scales - nbytes
        held, able = held + nbytes, able + nbytes * runs
        zero, elements = zero + zeros, elements + size
        parts.append(
            Part(
                path=layer.path,
                bytes=layer.bytes,
                share=layer.bytes / whole,
                zeros=zeros / max(size, 1),
                entropy=bits / max(size, 1),
                int8=runs if own else None,
            )
        )
    counted = Advice(
        examination=found,
        parts=tuple(sorted(parts, key=lambda part: -part.bytes)),
        bytes=found.costs.bytes,
        kernel_bytes=held,
        int8_share=able / max(held, 1),
        zeros=zero / max(elements, 1),
        coded_bytes=coded,
        candidates=(),
        seconds=0.0,
    )
    return dataclasses.replace(
        counted,
        candidates=tuple(_candidates(counted)),
        seconds=time.perf_counter() - began,
    )


def _bits(kernel: np.ndarray) -> float:
    """Bits of the codes of a kernel, (output channels, rest), a scale for each."""
    top = np.abs(kernel).max(axis=1, keepdims=True)
    codes = np.rint(kernel * (_MOST / np.where(top > 0, top, 1))).astype(np.int64)
    return float(entropy_bits(np.bincount((codes + _MOST).ravel())))


def _inside(path: str, where: str) -> bool:
    return path == where or path.startswith(f"{where}/") or path.endswith(f"/{where}")


def _candidates(found: Advice) -> list[tuple[str, str]]:
    """What the numbers speak for, the exact steps first."""
    made, seen = [], found.examination
    if seen.removable_parameters:
        made.append(
            (
                f"{seen.removable_channels:,} channels carry nothing; with them "
                f"{seen.removable_parameters:,} parameters leave, and nothing changes.",
                "model, report = dlopt.surgery.remove_dead(model)",
            )
        )
    folds = [f for f in seen.findings if f.kind == "foldable"]
    made += [(one.text, one.remedy) for one in folds]
    if found.kernel_bytes:
        made.append(
            (
                f"{found.int8_share:.1%} of the kernels' {found.kernel_bytes:,} bytes "
                "are in layers that LiteRT runs in int8.",
                "dlopt.compress(model, data, int8=True, path='model.tflite')",
            )
        )
        made.append(
            (
                f"As codes of 8 bits all weights carry {found.coded_bytes:,} bytes, "
                f"{found.bytes / found.coded_bytes:.1f} times fewer than in memory; "
                f"{found.zeros:.1%} of the kernels are zero.",
                "dlopt.compress(model, data, max_accuracy_drop=0.005)",
            )
        )
    return made
