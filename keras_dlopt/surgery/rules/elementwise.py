"""Rules of what acts on each channel for itself, and of sums and products."""

from typing import Any

import keras
import numpy as np

from keras_dlopt import _compat
from keras_dlopt.graph.affine import channel_factors
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.surgery import bounds
from keras_dlopt.surgery.channels import Channels
from keras_dlopt.surgery.rules.weighted import Answer, ended
from keras_dlopt.surgery.survey import ANY, Site

TOGETHER = "normalizes several channels together"


def same(site: Site) -> Answer:
    """Hands everything on."""
    return site.first


def cast(site: Site) -> Answer:
    """Another type of number."""
    if keras.backend.is_float_dtype(site.outputs[0].dtype):
        return site.first
    return site.first.bounded(*ANY)


def activation(site: Site) -> Answer:
    """A layer that is one activation function."""
    if not bounds.is_elementwise(site.operation.activation):
        return "an activation that may mix channels"
    return ended(site, site.first)


def relu(site: Site) -> Answer:
    """ReLU and its kin as layers with arguments."""
    layer, x = site.operation, site.first
    if getattr(layer, "threshold", 0) or _falls(layer):
        return x.bounded(*ANY)
    return x.bounded(*bounds.through(layer, x.low, x.high, None))


def _falls(function: Any) -> bool:
    """Whether it falls on negative numbers."""
    return any(getattr(function, name, 0) < 0 for name in ("negative_slope", "alpha"))


def prelu(site: Site) -> Answer:
    """Slopes, by channel or shared."""
    layer, x = site.operation, site.first
    if layer.alpha.shape[x.axis - 1] == x.n:
        site.weight(layer.alpha, x.axis - 1, x.ids)
    return x.bounded(*ANY)


def operation(site: Site) -> Answer:
    """An operation on single numbers, such as `keras.ops.relu`."""
    x = site.first
    if len(site.given) > 1:
        return "an operation on several tensors"
    if _falls(site.operation):
        return x.bounded(*ANY)
    bottom = bounds.ELEMENTWISE[_compat.operation_name(site.operation) or ""]
    rest = site.args[1:], site.kwargs

    def function(values):
        return site.operation(values, *rest[0], **rest[1])

    return x.bounded(*bounds.through(function, x.low, x.high, bottom))


def batch_normalization(site: Site) -> Answer:
    """Weights by channel."""
    layer = site.operation
    axis = layer.axis if layer.axis >= 0 else layer.axis + len(site.shape)
    x = site.along(axis)
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        site.weight(getattr(layer, name, None), 0, x.ids)
    return x.bounded(*bounds.scaled(x.low, x.high, *channel_factors(layer)))


def group_normalization(site: Site) -> Answer:
    """With a group for each channel they are apart; else they share their moments."""
    layer, x = site.operation, site.first
    axis = layer.axis if layer.axis >= 0 else layer.axis + len(site.shape)
    if axis != x.axis or layer.groups not in (-1, x.n):
        return TOGETHER
    for name in ("gamma", "beta"):
        site.weight(getattr(layer, name, None), 0, x.ids)
    if layer.groups != -1:
        site.size("groups", x.ids, makes=None)
    return x.bounded(*ANY)


def layer_scale(site: Site) -> Answer:
    """A factor for each channel."""
    layer, rank = site.operation, len(site.shape)
    x = site.along(
        1 if layer.data_format == "channels_first" and rank > 2 else rank - 1
    )
    site.weight(layer.gamma, 0, x.ids)
    gamma = to_numpy(layer.gamma).astype("float64")
    return x.bounded(*bounds.scaled(x.low, x.high, gamma, 0.0))


def factor_by_channel(site: Site) -> Answer:
    """The same of Keras' ConvNeXt, along the last axis."""
    layer, x = site.operation, site.along(len(site.shape) - 1)
    site.weight(layer.gamma, 0, x.ids)
    site.size("projection_dim", x.ids, makes=None)
    gamma = to_numpy(layer.gamma).astype("float64")
    return x.bounded(*bounds.scaled(x.low, x.high, gamma, 0.0))


def re_zero(site: Site) -> Answer:
    """One factor for all."""
    x, alpha = site.first, float(to_numpy(site.operation.alpha))
    return x.bounded(*bounds.scaled(x.low, x.high, alpha, 0.0))


def rescaling(site: Site) -> Answer:
    """One scale and offset for all."""
    layer, x = site.operation, site.first
    scale, offset = layer.scale, layer.offset
    if np.size(scale) > 1 or np.size(offset) > 1:
        return "a scale or an offset for each channel"
    return x.bounded(*bounds.scaled(x.low, x.high, float(scale), float(offset)))


def scaled_sum(site: Site) -> Answer:
    """The first tensor plus the second times a number."""
    one, other = site.given
    if one.axis != other.axis or one.n != other.n:
        return "joins channels along different axes"
    site.join(one.ids, other.ids)
    scaled = bounds.scaled(other.low, other.high, float(site.operation.scale), 0.0)
    return one.bounded(*_sum((one.low, one.high), scaled))


def normalized_together(site: Site) -> Answer:
    """Moments over the channels change when some leave: not for exact removal."""
    layer, x = site.operation, site.first
    axis = getattr(layer, "axis", -1)
    axes = axis if isinstance(axis, list | tuple) else [axis]
    if [a % len(site.shape) for a in axes] != [x.axis]:
        return TOGETHER
    groups = getattr(layer, "groups", 1)
    if groups in (-1, x.n):
        return group_normalization(site)
    rows = x.ids.reshape(groups, -1)
    for row in rows[1:]:  # all groups stay alike
        site.join(row, rows[0])
    for name in ("gamma", "beta", "scale"):
        weight = getattr(layer, name, None)
        if hasattr(weight, "shape"):  # `scale` may be a flag
            site.weight(weight, 0, x.ids)
    return x.bounded(*ANY)


_Interval = bounds.Interval


def _sum(one: _Interval, other: _Interval) -> _Interval:
    return one[0] + other[0], one[1] + other[1]


def _difference(one: _Interval, other: _Interval) -> _Interval:
    return one[0] - other[1], one[1] - other[0]


def _maximum(one: _Interval, other: _Interval) -> _Interval:
    return np.maximum(one[0], other[0]), np.maximum(one[1], other[1])


def _minimum(one: _Interval, other: _Interval) -> _Interval:
    return np.minimum(one[0], other[0]), np.minimum(one[1], other[1])


def _quotient(one: _Interval, other: _Interval) -> _Interval:
    if np.any((other[0] <= 0) & (other[1] >= 0)):
        return ANY
    return bounds.product(one, (1 / other[1], 1 / other[0]))


_JOINS = {
    "Add": _sum,
    "Average": _sum,
    "Subtract": _difference,
    "Multiply": bounds.product,
    "Maximum": _maximum,
    "Minimum": _minimum,
    "Divide": _quotient,
    "TrueDivide": _quotient,
}
JOINS = tuple(_JOINS)


def join(site: Site) -> Answer:
    """Sums, products and the like of tensors, channel by channel."""
    kind = next(n for c in type(site.operation).__mro__ if (n := c.__name__) in _JOINS)
    parts = _operands(site)
    if isinstance(parts, str):
        return parts
    axis = next(p.axis for p in parts if isinstance(p, Channels))
    wide = max(p.n for p in parts if isinstance(p, Channels))
    leader = next(p for p in parts if isinstance(p, Channels) and p.n == wide)
    total: _Interval | None = None
    for part in parts:
        low_high = part
        if isinstance(part, Channels):
            if part.n == wide:
                site.join(part.ids, leader.ids)
            else:
                site.pin(part.ids, "one channel that meets many")
            low_high = part.low, part.high
        total = low_high if total is None else _JOINS[kind](total, low_high)
    assert total is not None
    if kind == "Average":
        total = total[0] / len(parts), total[1] / len(parts)
    return Channels(axis, leader.ids, *total)


def _operands(site: Site) -> list[Any] | str:
    """Channels of tensors and bounds of constants, in order; or why there are none."""
    facts = dict(zip(map(id, site.taken), site.given, strict=True))
    flat = keras.tree.flatten((site.args, site.kwargs))
    found: list[Any] = []
    ranks = {len(t.shape) for t in site.taken}
    axes = {f.axis for f in site.given}
    if len(ranks) > 1:
        return "joins tensors of several ranks"
    if len(axes) > 1 or not all(f.n for f in site.given):
        return "joins channels along different axes"
    (rank,), (axis,) = ranks, axes
    for value in flat:
        if id(value) in facts:
            found.append(facts[id(value)])
            continue
        if value is None or isinstance(value, str | bool):
            return "an argument that is no tensor"
        array = np.asarray(to_numpy(value), "float64")
        along = axis - rank + array.ndim
        if along >= 0 and array.shape[along] > 1:
            return "a constant with a number for each channel"
        if array.ndim > rank:
            return "a constant of more dimensions"
        found.append((array.min(), array.max()))
    return found


def concatenate(site: Site) -> Answer:
    """One after the other along the channels; else tensors of the same channels."""
    layer, rank = site.operation, len(site.shape)
    axis = layer.axis if layer.axis >= 0 else layer.axis + rank
    places = {one.axis for one in site.given}
    if len(places) > 1 or not all(one.n for one in site.given):
        return "joins channels along different axes"
    (place,) = places
    if place == axis:
        parts = [
            np.concatenate([getattr(one, name) for one in site.given])
            for name in ("ids", "low", "high")
        ]
        return Channels(axis, *parts)
    first, *rest = site.given
    low, high = first.low, first.high
    for one in rest:
        site.join(one.ids, first.ids)
        low, high = np.minimum(low, one.low), np.maximum(high, one.high)
    return first.bounded(low, high)
