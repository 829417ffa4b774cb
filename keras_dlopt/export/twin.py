"""The inference twin: what is converted in place of the model that was trained.

Kernels are baked onto their int8 grids, so that the converter, which takes each
channel's largest magnitude for 127, arrives at the very same scales; a scale per
channel commutes with the BatchNorm that the converter folds in. Activation quantizers
become TensorFlow's op with constant ends, the only form the converter reads.
"""

import dataclasses
import functools
from typing import Any

import keras
import numpy as np

from keras_dlopt.codecs.hints import Grid
from keras_dlopt.errors import ConfigError, ExportError
from keras_dlopt.export.depthwise import as_convolutions
from keras_dlopt.export.ends import Ends
from keras_dlopt.graph import channels, hooks
from keras_dlopt.graph.kinds import KEEPS_RANGE, LINEAR
from keras_dlopt.graph.targets import (
    activation_path,
    activation_targets,
    taps,
    weight_targets,
)
from keras_dlopt.graph.trace import Call, Trace, trace
from keras_dlopt.transforms import (
    FakeQuantActivation,
    TransformedModel,
    finalize,
)
from keras_dlopt.transforms.quantize.grids import wide
from keras_dlopt.transforms.updating import hosts

# Narrower ranges the converter widens by itself, to others than the trained.
_SMALLEST = np.float32(2e-6)


@dataclasses.dataclass(frozen=True)
class Range:
    """The trained range of one activation quantizer, in float32."""

    path: str
    low: np.float32
    high: np.float32

    @property
    def scale(self) -> np.float32:
        """The step between two levels."""
        return np.float32((self.high - self.low) / np.float32(255))

    @property
    def zero_point(self) -> int:
        """The int8 code of 0."""
        zero = np.floor(-self.low / self.scale + np.float32(0.5))
        return int(np.clip(zero, 0, 255)) - 128


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """The trained codes of one kernel, a row per output channel.

    Attributes:
        path: of the weight.
        codes: (channels, rest), integers in [-127, 127].
        scale: (channels,) or (1,), float32.
    """

    path: str
    codes: np.ndarray
    scale: np.ndarray


class Twin(keras.Model):
    """Runs a model with constant activation quantizers, for conversion only.

    Its inputs and outputs are flat and have names, which the file's signature keeps.
    """

    def __init__(self, model: keras.Model, ranges: list[Range], ends: Ends):
        super().__init__(name=model.name)
        self.model = model
        self.ends = ends
        paths = [r.path for r in ranges]
        targets = {t.path: t for t in activation_targets(model, paths)}
        places = [(targets[r.path], _quantizer(r)) for r in ranges]
        self._quantized = functools.partial(hooks.hooked, tuple(taps(places)))
        self.built = True

    def call(self, inputs: Any) -> Any:
        with self._quantized():
            outputs = self.model(self.ends.structured(inputs), training=False)
        return self.ends.named(outputs)


def _quantizer(r: Range) -> Any:
    import tensorflow as tf

    low, high = float(r.low), float(r.high)
    return lambda x: tf.quantization.fake_quant_with_min_max_vars(x, low, high)


def bake(
    model: keras.Model, example: Any = None
) -> tuple[keras.Model, list[Range], list[Kernel]]:
    """A plain copy with baked weights, its activation ranges and its int8 kernels.

    The lists are empty for a model without activation quantizers, which is exported
    in float.

    Args:
        model: what was trained; it stays as it is.
        example: a batch of inputs, for models that do not know their input's shape.

    Raises:
        ConfigError: for quantizers that int8 LiteRT cannot express.
        ExportError: for ranges that were never trained.
    """
    if not hosts(model):
        return model, [], []
    if not isinstance(model, TransformedModel):
        if any(
            g.transform.kind == "activation" for h in hosts(model) for g in h.groups
        ):
            raise ConfigError(
                f"{model.name!r} holds activation quantizers inside TransformedLayers, "
                "which the export does not reach. Put them into one recipe: "
                "keras_dlopt.transform(model, recipe)."
            )
        return finalize(model), [], []
    ranges = _ranges(model)
    plain = finalize(model)
    if not ranges:
        return plain, [], []
    kernels = _kernels(model, plain)
    graph = trace(plain, example)
    _check_reshapes(graph, {r.path: r for r in ranges})
    as_convolutions(graph)
    return plain, ranges, kernels


def _ranges(model: TransformedModel) -> list[Range]:
    found, untrained = [], []
    for group in model.groups:
        if group.transform.kind != "activation":
            continue
        if not isinstance(group.transform, FakeQuantActivation):
            raise ConfigError(
                "The int8 export knows FakeQuantActivation for activations. "
                f"Received: {group.transform!r} at {group.slots[0].target.path!r}."
            )
        if group.transform.bits != 8:
            raise ConfigError(
                f"LiteRT's int8 kernels take activations of 8 bits. {group.transform!r}"
                f" at {group.slots[0].target.path!r} has {group.transform.bits}: files "
                "with other widths convert, and then fail or return wrong numbers. "
                "Train with FakeQuantActivation(bits=8)."
            )
        for slot in group.slots:
            state = slot.arrays()
            if not state["seen"]:
                untrained.append(slot.target.path)
            low = np.float32(state["low"])
            high = np.float32(wide(low, np.float32(state["high"])))
            high = np.maximum(high, low + _SMALLEST)
            found.append(Range(slot.target.path, low, high))
    if untrained:
        raise ExportError(
            f"The ranges of {untrained} were never set: no training step has run "
            "through them. Train the model with fit() first, a few steps are enough "
            "for the ranges."
        )
    return found


def _kernels(model: TransformedModel, plain: keras.Model) -> list[Kernel]:
    hints = {target.path: hint for target, _, hint in model.final_values()}
    kernels, dense = [], {}
    for target in weight_targets(plain):
        if not isinstance(target.layer, LINEAR) or target.name != "kernel":
            continue
        hint = hints.get(target.path)
        if not isinstance(hint, Grid) or not _converts(target, hint):
            raise ConfigError(
                f"{target.path!r} is not on an int8 grid with a scale per output "
                "channel (dense kernels may have one), so the file would round it "
                "anew. Give its recipe entry a transform that ends in "
                "FakeQuant(bits=8), such as Prune(0.8) >> FakeQuant(bits=8); "
                "int8_recipe(model) does so for all kernels."
            )
        kernels.append(_rows(target, hint))
        if isinstance(target.layer, keras.layers.Dense) and len(kernels[-1].codes) > 1:
            dense[target.path] = hint.scale.size  # of one channel both are the same
    if len({size > 1 for size in dense.values()}) > 1:
        raise ConfigError(
            "A file has one scale for every dense kernel, or one for every output "
            f"channel of them. Received numbers of scales: {dense}. Give all dense "
            "kernels the same per_channel."
        )
    return kernels


def one_scale_each(kernels: list[Kernel]) -> bool:
    """Whether dense kernels have one scale each, and not one per output channel."""
    return any(k.scale.size < len(k.codes) for k in kernels)


def _converts(target: Any, hint: Grid) -> bool:
    """Whether the largest code of each scale is 127, as the converter will make it."""
    rows = _rows(target, hint)
    largest = np.abs(rows.codes).max(axis=1, initial=0)
    if rows.scale.size == 1 and isinstance(target.layer, keras.layers.Dense):
        return bool(largest.max(initial=0) in (0, 127))
    full = bool(np.all((largest == 127) | (largest == 0)))
    return full and rows.scale.size == len(rows.codes)


def _rows(target: Any, hint: Grid) -> Kernel:
    """Codes with the output channels first, as rows."""
    rows = channels.by_output(target, hint.codes)
    return Kernel(target.path, rows, hint.scale.ravel())


def _check_reshapes(graph: Trace, ranges: dict[str, Range]) -> None:
    """Raises if the quantizers before and after a layer that keeps values differ."""
    producers = graph.producers()

    def range_at(call: Call, end: str) -> Range | None:
        own = ranges.get(graph.place(call, end))
        return own or ranges.get(activation_path(call.path, end))

    def range_of(tensor: int) -> Range | None:
        call = producers.get(tensor)
        if call is None:
            return None
        own = range_at(call, "output")
        if own is None and isinstance(call.layer, KEEPS_RANGE):
            return range_of(call.inputs[0])
        return own

    for call in graph.calls:
        after = range_at(call, "output")
        if after is None or not isinstance(call.layer, KEEPS_RANGE):
            continue
        before = range_at(call, "input") or range_of(call.inputs[0])
        if before and (before.low, before.high) != (after.low, after.high):
            raise ConfigError(
                f"{call.path!r} keeps the values of its input, and its output has "
                f"another range ({after.low:.4g}, {after.high:.4g}) than its input "
                f"({before.low:.4g}, {before.high:.4g}, from {before.path!r}). LiteRT "
                "has one range for both and would return wrong numbers. Leave "
                f"{after.path!r} out of the recipe."
            )
