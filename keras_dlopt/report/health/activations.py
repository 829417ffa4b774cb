"""What a model's layers return on data: ranges, outliers, saturation, silence."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.graph import hooks
from keras_dlopt.graph.channels import tensor_axis
from keras_dlopt.graph.kinds import LINEAR, activation_name, is_relu
from keras_dlopt.graph.trace import Trace
from keras_dlopt.post_training.data import Batches
from keras_dlopt.report.health.findings import ActivationRange, Finding

EXAMPLES = 256  # at most so many are looked at
SAMPLE = 20_000  # values of each layer and batch that quantiles are taken of
# The largest over the magnitude that one value in a thousand exceeds.
OUTLIER = 8.0
# The part of a bounded function where its slope is next to nothing.
FLAT = {"sigmoid": (0.01, 0.99), "tanh": (-0.99, 0.99), "relu6": (-np.inf, 6.0)}
SATURATED = 0.5

QUANTIZE = "small = dlopt.post_training.quantize(model, data, observer='mse')"
MEASURE = "dlopt.post_training.recalibrate_batch_normalization(model, data)"
TRAIN = "model.fit(x, y)"
# Channels that do not answer to the data have no gradient and score 0.
PRUNE = (
    "small, report = dlopt.prune_channels(model, parameters=0.9, multiple=1, "
    "score=dlopt.prune.Taylor(), data=(x, y))"
)
GUARD = "model.fit(x, y, callbacks=[dlopt.callbacks.DivergenceGuard()])"


@dataclasses.dataclass
class Activations:
    """What one layer returned over all batches."""

    path: str
    layer: Any
    low: float = np.inf
    high: float = -np.inf
    bad: int = 0
    values: int = 0
    flat: int = 0
    usual: list[float] = dataclasses.field(default_factory=list)
    moved: Any = None

    @property
    def range(self) -> ActivationRange:
        """What is shown of it."""
        usual = float(np.median(self.usual)) if self.usual else 0.0
        return ActivationRange(self.path, self.low, self.high, usual)

    def add(self, outputs: Any) -> None:
        """Takes in what one call returned."""
        array = np.asarray(ops.convert_to_numpy(outputs), "float32")
        finite = array[np.isfinite(array)]
        self.bad += array.size - finite.size
        self.values += array.size
        if not finite.size:
            return
        self.low = min(self.low, float(finite.min()))
        self.high = max(self.high, float(finite.max()))
        step = max(finite.size // SAMPLE, 1)
        self.usual.append(float(np.quantile(np.abs(finite[::step]), 0.999)))
        if ends := FLAT.get(_bound(self.layer)):
            self.flat += int(((finite <= ends[0]) | (finite >= ends[1])).sum())
        axis = tensor_axis(self.layer) % array.ndim
        others = tuple(a for a in range(array.ndim) if a != axis)
        fires = np.abs(array).max(axis=others) > 0
        self.moved = fires if self.moved is None else self.moved | fires


def _bound(layer: Any) -> str:
    if isinstance(layer, keras.layers.ReLU) and layer.max_value == 6:
        return "relu6"
    return activation_name(layer)


def look(model: Any, graph: Trace, batches: Batches) -> list[Activations]:
    """Runs a model over data and keeps what each layer without inner ones returns.

    Args:
        model: to be run.
        graph: its trace.
        batches: of its inputs.
    """
    calls = {c.path: c for c in graph.calls if not c.composite}
    seen = {path: Activations(path, call.layer) for path, call in calls.items()}

    def watch(one: Activations) -> hooks.Hook:
        def note(call: hooks.Called, given: hooks.Given) -> Any:
            outputs = call(given)
            for tensor in keras.tree.flatten(outputs):
                if keras.backend.is_float_dtype(tensor.dtype):
                    one.add(tensor)
            return outputs

        return note

    with hooks.hooked((one.layer, watch(one)) for one in seen.values()):
        for batch in batches:
            model(batch, training=False)
    return [one for one in seen.values() if one.values]


def judged(seen: list[Activations], graph: Trace) -> Iterator[Finding]:
    """Layers whose activations lie badly."""
    normalizes = any(
        isinstance(c.layer, keras.layers.BatchNormalization) for c in graph.calls
    )
    for one in seen:
        if one.bad:
            text = f"{one.bad} of {one.values} activations are NaN or infinite."
            yield Finding("not finite", one.path, text, {"values": one.bad}, GUARD)
        largest, usual = max(abs(one.low), abs(one.high)), one.range.usual
        if usual > 0 and largest > OUTLIER * usual:
            yield Finding(
                "outliers",
                one.path,
                f"Activations reach from {one.low:.4g} to {one.high:.4g}, and 99.9 % "
                f"stay below {usual:.3g}: with that range int8 spends "
                f"{1 - usual / largest:.0%} of its levels on one in a thousand.",
                {"low": one.low, "high": one.high, "usual": usual},
                QUANTIZE,
            )
        share = one.flat / one.values
        if share > SATURATED:
            yield Finding(
                "saturated",
                one.path,
                f"{share:.0%} of the activations are where {_bound(one.layer)} is "
                "flat: no gradient comes through.",
                {"share": share},
                MEASURE if normalizes else TRAIN,
            )
        silent = 0 if one.moved is None else int((~one.moved).sum())
        if silent and (isinstance(one.layer, LINEAR) or is_relu(one.layer)):
            yield Finding(
                "silent on the data",
                one.path,
                f"{silent} of {one.moved.size} channels are 0 on all of the data; on "
                "other data they may not be.",
                {"channels": silent, "of": one.moved.size},
                PRUNE,
            )
