"""Weights at the edge of what a computer can hold."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_dlopt.graph.affine import channel_factors
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.graph.walk import walk
from keras_dlopt.report.health.findings import Finding
from keras_dlopt.runtime.values import to_numpy

# A normalization that multiplies by more makes rounding visible.
LARGE_FACTOR = 1e3
GUARD = "model.fit(x, y, callbacks=[dlopt.callbacks.DivergenceGuard()])"
FLUSH = "for w in model.trainable_variables: w.assign(np.where(abs(w) < 1e-37, 0, w))"
MEASURE = "dlopt.post_training.recalibrate_batch_normalization(model, data)"


def risky(model: Any) -> Iterator[Finding]:
    """Weights that are not finite or denormal, and normalizations at the edge."""
    for target in weight_targets(model):
        yield from _weights(target.path, to_numpy(target.variable).astype("float64"))
    for path, layer, _ in walk(model):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.built:
            yield from _normalization(path, layer)


def _weights(path: str, value: np.ndarray) -> Iterator[Finding]:
    bad = int((~np.isfinite(value)).sum())
    if bad:
        yield Finding(
            "not finite",
            path,
            f"{bad} of {value.size} values are NaN or infinite. Load the last weights "
            "that were finite, and train on with a guard.",
            {"values": bad, "of": value.size},
            GUARD,
        )
    tiny = np.finfo("float32").tiny
    small = int(((value != 0) & (np.abs(value) < tiny)).sum())
    if small:
        yield Finding(
            "denormal",
            path,
            f"{small} of {value.size} values are below {tiny:.3g}: slow on some "
            "processors, and no number on others.",
            {"values": small, "of": value.size},
            FLUSH,
        )


def _normalization(path: str, layer: Any) -> Iterator[Finding]:
    variance = to_numpy(layer.moving_variance)
    few = int((variance < layer.epsilon).sum())
    if few:
        yield Finding(
            "tiny variance",
            path,
            f"{few} of {variance.size} variances are below epsilon, {layer.epsilon:g}, "
            "which decides the factor in their place.",
            {"channels": few, "of": variance.size},
            MEASURE,
        )
    with np.errstate(invalid="ignore"):
        factor = np.abs(channel_factors(layer)[0])
    many = int((factor > LARGE_FACTOR).sum())
    if many:
        yield Finding(
            "large factor",
            path,
            f"{many} of {factor.size} channels are multiplied by more than "
            f"{LARGE_FACTOR:g}, up to {np.nanmax(factor):.3g}: what is rounded before "
            "is as much larger after.",
            {"channels": many, "of": factor.size},
            MEASURE,
        )
