"""Rules of layers that move, cut, pad, pool or lay out channels anew."""

import math
from typing import Any

import numpy as np

from keras_dlopt.surgery.bounds import with_zero
from keras_dlopt.surgery.channels import Channels
from keras_dlopt.surgery.rules.weighted import Answer
from keras_dlopt.surgery.survey import ANY, Site

_OTHER = "works along the axis of the channels"


def _channel_axis(site: Site) -> int:
    first = getattr(site.operation, "data_format", None) == "channels_first"
    return 1 if first else len(site.taken[0].shape) - 1


def spatial(site: Site) -> Answer:
    """Pooling, cropping, upsampling: every channel for itself."""
    if site.first.axis != _channel_axis(site):
        return _OTHER
    if getattr(site.operation, "interpolation", "nearest") in ("nearest", "bilinear"):
        return site.first
    return site.first.bounded(*ANY)  # it may overshoot


def global_pooling(site: Site) -> Answer:
    """Each channel for itself, space gone."""
    if site.first.axis != _channel_axis(site):
        return _OTHER
    return site.first if site.operation.keepdims else site.first.moved(1)


def zero_padding(site: Site) -> Answer:
    """Zeros in space; or, in the other data format, channels of zeros."""
    layer, x = site.operation, site.first
    channels = _channel_axis(site)
    if x.axis == channels:
        return x.bounded(*with_zero(x.low, x.high))
    padding = np.reshape(layer.padding, (-1, 2)).tolist()
    place = x.axis - (2 if channels == 1 else 1)
    before, after = padding[place]
    zeros = site.fresh(before + after)
    ids = np.concatenate([zeros[:before], x.ids, zeros[before:]])

    def write(config: dict[str, Any], stays: np.ndarray) -> None:
        left = int(stays[:before].sum()), int(stays[len(stays) - after :].sum())
        pairs = [tuple(pair) for pair in padding]
        pairs[place] = left
        config["padding"] = pairs[0] if len(pairs) == 1 else tuple(pairs)

    site.size("padding", ids, write)
    low, high = (np.pad(v, (before, after)) for v in (x.low, x.high))
    return Channels(x.axis, ids, low, high)


def flatten(site: Site) -> Answer:
    """Row by row, the channels last."""
    shape = site.taken[0].shape
    order = [*range(1, len(shape))]
    if getattr(site.operation, "data_format", None) == "channels_first":
        order = [*order[1:], order[0]]
    return _laid_out(site, order)


def reshape(site: Site) -> Answer:
    """The layer or operation: channels along one axis, before and after."""
    shape = site.taken[0].shape
    made = _laid_out(site, [*range(1, len(shape))])
    if not isinstance(made, Channels):
        return made
    layered = hasattr(site.operation, "target_shape")
    name = "target_shape" if layered else "newshape"
    skip = 1 if layered else 0

    def write(config: dict[str, Any], stays: np.ndarray) -> None:
        new = list(config[name])
        if new[made.axis - skip] != -1:
            new[made.axis - skip] = int(stays.sum())
        config[name] = tuple(new)

    site.size(name, made.ids, write)
    return made


def _laid_out(site: Site, order: list[int]) -> Answer:
    """What becomes of the channels when the axes, in this order, get a new shape."""
    x, shape, new = site.first, site.taken[0].shape, site.shape
    if x.axis == 0:
        return "lays out the batch"
    if x.axis == order[-1] == len(shape) - 1 and new[-1] == shape[-1] == x.n:
        return x.moved(len(new) - 1)  # whatever the rest is
    dims = [shape[axis] for axis in order]
    if None in dims or None in new[1:] or math.prod(dims) != math.prod(new[1:]):
        return "lays out a shape that is not known"
    place = order.index(x.axis)
    wide = np.arange(x.n).reshape([-1 if i == place else 1 for i in range(len(dims))])
    index = np.broadcast_to(wide, dims).reshape(new[1:])
    varying = [i for i, n in enumerate(index.shape) if n > 1 and _varies(index, i)]
    if not varying:  # one channel
        ones = [i for i, n in enumerate(index.shape) if n == 1]
        varying = [ones[-1] if ones else index.ndim - 1]
    if len(varying) > 1:
        return _spread(site, index, varying)
    line = np.moveaxis(index, varying[0], 0).reshape(index.shape[varying[0]], -1)[:, 0]
    return x.taken(line).moved(varying[0] + 1)


def _spread(site: Site, index: np.ndarray, varying: list[int]) -> Answer:
    """Channels over several axes, as before a shuffle: whole rows of them may leave.

    The longest axis becomes that of the channels; what lies behind one place of it, at
    all places of the other axes, leaves together.
    """
    x = site.first
    axis = max(varying, key=lambda i: (index.shape[i], i))
    rows = np.moveaxis(index, axis, 0).reshape(index.shape[axis], -1)
    rows = np.unique(rows, axis=1)
    if rows.size != x.n:
        return "spreads channels over several axes"
    ids = site.fresh(len(rows))
    for column in rows.T:
        site.join(x.ids[column], ids)
    low, high = x.low[rows].min(axis=1), x.high[rows].max(axis=1)
    return Channels(axis + 1, ids, low, high)


def _varies(index: np.ndarray, axis: int) -> bool:
    first = np.take(index, [0], axis=axis)
    return bool((index != first).any())


def permute(site: Site) -> Answer:
    """The layer."""
    order = (0, *site.operation.dims)
    return site.first.moved(order.index(site.first.axis))


def transpose(site: Site) -> Answer:
    """The operation."""
    rank = len(site.taken[0].shape)
    axes = site.operation.axes
    order = [a % rank for a in axes] if axes is not None else [*range(rank)][::-1]
    if order[0] != 0:
        return "moves the batch"
    return site.first.moved(order.index(site.first.axis))


def _axes(axis: Any, rank: int) -> list[int]:
    if axis is None:
        return [*range(rank)]
    return [a % rank for a in (axis if isinstance(axis, list | tuple) else (axis,))]


def mean(site: Site) -> Answer:
    """Means, maxima and minima over axes that are not of the channels."""
    x, rank = site.first, len(site.taken[0].shape)
    gone = _axes(site.operation.axis, rank)
    if x.axis in gone or 0 in gone:
        return _OTHER
    if site.operation.keepdims:
        return x
    return x.moved(x.axis - sum(a < x.axis for a in gone))


def expand(site: Site) -> Answer:
    """`keras.ops.expand_dims`."""
    new = _axes(site.operation.axis, len(site.shape))
    x = site.first
    rest = [a for a in range(len(site.shape)) if a not in new]
    return x.moved(rest[x.axis])


def squeeze(site: Site) -> Answer:
    """`keras.ops.squeeze`."""
    x, shape = site.first, site.taken[0].shape
    axis = site.operation.axis
    gone = [i for i, n in enumerate(shape) if n == 1]
    if axis is not None:
        gone = _axes(axis, len(shape))
    if x.axis in gone:
        return _OTHER
    return x.moved(x.axis - sum(a < x.axis for a in gone))


def repeat_vector(site: Site) -> Answer:
    """A vector at each step."""
    return site.first.moved(2)


def get_item(site: Site) -> Answer:
    """`x[...]`; along the channels a slice with a step of 1, which is cut anew."""
    x, rank = site.first, len(site.taken[0].shape)
    key = site.args[1] if len(site.args) > 1 else site.kwargs.get("key")
    parts = list(key) if isinstance(key, tuple) else [key]
    fine = all(p is None or p is Ellipsis or isinstance(p, int | slice) for p in parts)
    if not fine or parts.count(Ellipsis) > 1:
        return "an index that is no slice"
    used = sum(p is not None and p is not Ellipsis for p in parts)
    if Ellipsis not in parts:
        parts.append(Ellipsis)
    dots = parts.index(Ellipsis)
    parts[dots : dots + 1] = [slice(None)] * (rank - used)
    made = old = 0
    for position, part in enumerate(parts):
        if part is None:
            made += 1
            continue
        if old == x.axis:
            return _sliced(site, parts, position, made)
        old += 1
        made += not isinstance(part, int)
    return _OTHER


def _sliced(site: Site, parts: list[Any], position: int, made: int) -> Answer:
    x, part = site.first, parts[position]
    if not isinstance(part, slice) or part.step not in (None, 1):
        return _OTHER
    start, stop, _ = part.indices(x.n)
    if (start, stop) == (0, x.n):
        return x.moved(made)
    if stop <= start:
        return _OTHER
    site.keeps_one(x.ids[start:stop])
    ids = x.ids

    def arguments(kept: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        stays = kept(ids)
        cut = slice(int(stays[:start].sum()), int(stays[:stop].sum()))
        new = (*parts[:position], cut, *parts[position + 1 :])
        return (args[0], new), {}

    site.place.arguments = arguments
    return x.taken(np.arange(start, stop)).moved(made)


def split(site: Site) -> Answer:
    """The operation: each part along the channels keeps its own."""
    operation, x = site.operation, site.first
    axis = _axes(operation.axis, len(site.shape))[0]
    if axis != x.axis:
        return [x] * len(site.outputs)
    sizes = [tensor.shape[axis] for tensor in site.outputs]
    ends = np.cumsum(sizes)[:-1]
    parts = np.split(np.arange(x.n), ends)
    for number, part in enumerate(parts):
        site.keeps_one(x.ids[part], f":{number}")

    def write(config: dict[str, Any], stays: np.ndarray) -> None:
        counts = np.concatenate([[0], np.cumsum(stays)])
        config["indices_or_sections"] = [int(counts[end]) for end in ends]

    site.size("indices_or_sections", x.ids, write, makes=None)
    return [x.taken(part) for part in parts]
