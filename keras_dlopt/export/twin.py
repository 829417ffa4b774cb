"""The inference twin: what is converted in place of the model that was trained.

Kernels are baked onto their grids; a scale per channel commutes with the BatchNorm that
the converter folds in. Activation quantizers become TensorFlow's op with constant ends,
the only form the converter reads.
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
from keras_dlopt.graph.kinds import weight_names
from keras_dlopt.graph.targets import activation_targets, taps, weight_targets
from keras_dlopt.graph.trace import trace
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
    bits: int = 8

    @property
    def scale(self) -> np.float32:
        """The step between two levels."""
        if self.bits == 16:  # from -32767 to 32767
            return np.float32(self.high / np.float32(32767))
        return np.float32((self.high - self.low) / np.float32(255))

    @property
    def mark(self) -> "Range":
        """The range of 8 bits that marks it in the file that is converted."""
        return dataclasses.replace(self, bits=8)

    @property
    def zero_point(self) -> int:
        """The code of 0."""
        if self.bits == 16:
            return 0
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
        self.ranges = tuple(ranges)
        paths = [r.path for r in ranges]
        targets = {t.path: t for t in activation_targets(model, paths)}
        places = [(targets[r.path], _quantizer(r.mark)) for r in ranges]
        self._quantized = functools.partial(hooks.hooked, tuple(taps(places)))
        self.built = True

    def call(self, inputs: Any) -> Any:
        with self._quantized():
            outputs = self.model(self.ends.structured(inputs), training=False)
        return self.ends.named(outputs)


def _quantizer(r: Range) -> Any:
    if keras.backend.backend() == "jax":
        return _mark(r)
    import tensorflow as tf

    low, high = float(r.low), float(r.high)
    zero = -low / (high - low) * 255
    if abs(zero % 1 - 0.5) < 1e-3:  # the converter would round it in its own way
        shift = (r.zero_point + 128 - zero) * float(r.scale)
        low, high = low - shift, high - shift
    return lambda x: tf.quantization.fake_quant_with_min_max_vars(x, low, high)


def _mark(r: Range) -> Any:
    """What `litert-converter` turns into a pair: its numbers are those of `r`."""
    import jax

    attributes = {
        "dtype": "i8",
        "narrow_range": False,
        "quantization_dimension": np.int32(-1),
        "scale": np.array([r.scale], "float64"),
        "zero_point": np.array([r.zero_point], "int64"),
    }
    marked = jax.lax.composite(lambda x, **_: x, "quant.fake_quant")
    return lambda x: marked(x, **attributes)


def calls_for(plain: keras.Model, example: Any = None) -> None:
    """Makes a baked model run what int8 has no exact operation for in another way."""
    as_convolutions(trace(plain, example))


def bake(
    model: keras.Model, example: Any = None, *, bits: tuple[int, ...] = (8,)
) -> tuple[keras.Model, list[Range], list[Kernel]]:
    """A plain copy with baked weights, its activation ranges and its int8 kernels.

    There are no ranges for a model without activation quantizers.

    Args:
        model: what was trained; it stays as it is.
        example: a batch of inputs, for models that do not know their input's shape.
        bits: that activations may have.

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
    ranges = _ranges(model, bits)
    plain = finalize(model)
    kernels = _kernels(model, plain)
    if ranges:
        calls_for(plain, example)
    return plain, ranges, kernels


def _ranges(model: TransformedModel, bits: tuple[int, ...]) -> list[Range]:
    found, untrained = list[Range](), []
    for group in model.groups:
        if group.transform.kind != "activation":
            continue
        if not isinstance(group.transform, FakeQuantActivation):
            raise ConfigError(
                "The int8 export knows FakeQuantActivation for activations. "
                f"Received: {group.transform!r} at {group.slots[0].target.path!r}."
            )
        _check_width(group, bits)
        for slot in group.slots:
            state = slot.arrays()
            if not state["seen"]:
                untrained.append(slot.target.path)
            low = np.float32(state["low"])
            high = np.float32(wide(low, np.float32(state["high"])))
            high = np.maximum(high, low + _SMALLEST)
            if group.transform.bits == 16:
                high = np.maximum(high, -low)
                low = -high
            found.append(Range(slot.target.path, low, high, group.transform.bits))
    if untrained:
        raise ExportError(
            f"The ranges of {untrained} were never set: no training step has run "
            "through them. Train the model with fit() first, a few steps are enough "
            "for the ranges."
        )
    widths = {r.bits: r.path for r in found}
    if len(widths) > 1:
        raise ConfigError(
            f"{widths[8]!r} has 8 bits and {widths[16]!r} 16: a file has activations "
            "of one width. Give all FakeQuantActivation the same bits."
        )
    return found


def _check_width(group: Any, bits: tuple[int, ...]) -> None:
    given, path = group.transform, group.slots[0].target.path
    if given.bits not in bits:
        raise ConfigError(
            f"The kernels take activations of {' or '.join(map(str, bits))} bits here. "
            f"{given!r} at {path!r} has {given.bits}. Train with "
            "FakeQuantActivation(bits=8)."
        )
    if given.bits == 16 and not given.symmetric:
        raise ConfigError(
            f"LiteRT's kernels for 16 bits know no zero point, and {given!r} at "
            f"{path!r} has one. Train with "
            "FakeQuantActivation(bits=16, symmetric=True)."
        )


def _kernels(model: TransformedModel, plain: keras.Model) -> list[Kernel]:
    """The kernels and embeddings that lie on a grid that int8 holds."""
    hints = {target.path: hint for target, _, hint in model.final_values()}
    found = [(t, hints.get(t.path)) for t in weight_targets(plain) if weight_names(t)]
    rows = [_rows(t, hint) for t, hint in found if isinstance(hint, Grid)]
    return [kernel for kernel in rows if kernel is not None]


def _rows(target: Any, hint: Grid) -> Kernel | None:
    """Codes with the output channels first, as rows; None if int8 has no such grid."""
    codes, scale = hint.codes, np.asarray(hint.scale, "float32")
    axes = channels.output_axes(target, codes.ndim)
    kept = tuple(n if a in axes else 1 for a, n in enumerate(codes.shape))
    spread = (1,) * (codes.ndim - scale.ndim) + scale.shape
    fits = all(n in (1, k) for n, k in zip(spread, kept, strict=True))
    if not fits or np.abs(codes).max(initial=0) > 127:
        return None
    if scale.size > 1:
        scale = channels.by_output(target, np.broadcast_to(scale, kept))
    return Kernel(target.path, channels.by_output(target, codes), scale.ravel())
