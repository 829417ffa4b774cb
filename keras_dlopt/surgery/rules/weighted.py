"""Rules of layers that multiply with a kernel."""

from typing import Any

import numpy as np

from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.surgery.bounds import activated, affine, is_elementwise, with_zero
from keras_dlopt.surgery.channels import Channels
from keras_dlopt.surgery.survey import ANY, Site

Answer = Channels | list[Channels] | str


def ended(site: Site, facts: Channels) -> Channels:
    """The facts behind the activation that a layer ends with."""
    function = getattr(site.operation, "activation", None)
    if is_elementwise(function):
        return facts.bounded(*activated(function, facts.low, facts.high))
    site.pin(facts.ids, "an activation that may mix channels")
    return facts.bounded(*ANY)


def dense(site: Site) -> Answer:
    """All inputs into all units."""
    layer = site.operation
    x = site.along(len(site.taken[0].shape) - 1)
    kernel = to_numpy(layer.kernel)
    out = site.fresh(kernel.shape[1])
    _product_of(site, x, out, (0, 1))
    site.multiplies(layer.kernel, site.shape[1:-1])
    site.size("units", out)
    site.read(x, out, kernel[None, None], bias="use_bias")
    bounds = affine(kernel[None, None], x.low, x.high)
    return ended(site, _biased(site, Channels(len(site.shape) - 1, out, *bounds)))


def _product_of(
    site: Site, x: Channels, out: np.ndarray, axes: tuple[int, int]
) -> None:
    """Ties the kernel and the bias of a layer."""
    layer = site.operation
    site.weight(layer.kernel, axes[0], x.ids)
    site.weight(layer.kernel, axes[1], out)
    site.weight(layer.bias, 0, out)


def _biased(site: Site, facts: Channels) -> Channels:
    bias = site.operation.bias
    if bias is None:
        return facts
    values = to_numpy(bias).astype("float64")
    return facts.bounded(facts.low + values, facts.high + values)


def _channel_axis(site: Site) -> int:
    first = site.operation.data_format == "channels_first"
    return 1 if first else len(site.taken[0].shape) - 1


def _padded(layer: Any) -> bool:
    return layer.padding != "valid" and np.prod(layer.kernel_size) > 1


def convolution(site: Site) -> Answer:
    """Also with groups, and with a group for each channel."""
    layer = site.operation
    axis = _channel_axis(site)
    x = site.along(axis)
    kernel = to_numpy(layer.kernel)
    kernel = kernel.reshape(-1, *kernel.shape[-2:])
    groups, made = layer.groups, kernel.shape[-1]
    padded = _padded(layer)
    inside = with_zero(x.low, x.high) if padded else (x.low, x.high)
    taps, inputs, _ = kernel.shape
    split = kernel.reshape(taps, inputs, groups, made // groups).swapaxes(1, 2)
    bounds = affine(split, *inside)
    site.multiplies(layer.kernel, site.without(site.shape, axis))
    if groups > 1 and inputs == 1:  # each channel for itself
        out = np.repeat(x.ids, made // groups)
        site.size("groups", x.ids, makes=None)
        site.weight(layer.kernel, -1, out)
    else:
        out = site.fresh(made)
        for ids in (x.ids, out):  # all groups stay alike
            rows = ids.reshape(groups, -1)
            for row in rows[1:]:
                site.join(row, rows[0])
        site.weight(layer.kernel, -2, x.ids[:inputs])
        site.weight(layer.kernel, -1, out)
        site.read(x, out, split, bias="use_bias", padded=padded)
    site.weight(layer.bias, 0, out)
    site.size("filters", out)
    return ended(site, _biased(site, Channels(axis, out, *bounds)))


def transposed(site: Site) -> Answer:
    """The kernel has outputs before inputs."""
    layer = site.operation
    axis = _channel_axis(site)
    x = site.along(axis)
    kernel = to_numpy(layer.kernel)
    kernel = kernel.reshape(-1, 1, *kernel.shape[-2:]).swapaxes(2, 3)
    out = site.fresh(kernel.shape[-1])
    _product_of(site, x, out, (-1, -2))
    site.multiplies(layer.kernel, site.without(site.taken[0].shape, axis))
    site.size("filters", out)
    # How many taps meet a place depends on the place.
    site.read(x, out, kernel, bias="use_bias", padded=True)
    bounds = affine(kernel, *with_zero(x.low, x.high))
    return ended(site, _biased(site, Channels(axis, out, *bounds)))


def depthwise(site: Site) -> Answer:
    """Each channel makes as many as the multiplier says."""
    layer = site.operation
    x = site.along(_channel_axis(site))
    made = _deep(site, x, layer.kernel)
    site.weight(layer.bias, 0, made.ids)
    return ended(site, _biased(site, made))


def _deep(site: Site, x: Channels, variable: Any) -> Channels:
    """What a depthwise kernel makes of channels."""
    kernel = to_numpy(variable)
    times = kernel.shape[-1]
    kernel = kernel.reshape(-1, x.n, 1, times)
    site.multiplies(variable, site.without(site.shape, x.axis))
    site.weight(variable, -2, x.ids)
    inside = (x.low, x.high)
    if _padded(site.operation):
        inside = with_zero(*inside)
    return Channels(x.axis, np.repeat(x.ids, times), *affine(kernel, *inside))


def separable(site: Site) -> Answer:
    """Depthwise, then a convolution of single points."""
    layer = site.operation
    x = site.along(_channel_axis(site))
    deep = _deep(site, x, layer.depthwise_kernel)
    point = to_numpy(layer.pointwise_kernel)
    point = point.reshape(1, 1, *point.shape[-2:])
    out = site.fresh(point.shape[-1])
    site.multiplies(layer.pointwise_kernel, site.without(site.shape, x.axis))
    site.weight(layer.pointwise_kernel, -2, deep.ids)
    site.weight(layer.pointwise_kernel, -1, out)
    site.weight(layer.bias, 0, out)
    site.size("filters", out)
    site.read(deep, out, point, bias="use_bias")
    bounds = affine(point, deep.low, deep.high)
    return ended(site, _biased(site, Channels(x.axis, out, *bounds)))


def einsum_dense(site: Site) -> Answer:
    """A product that sums over the channels; other letters of the kernel stay."""
    layer = site.operation
    terms, outputs = layer.equation.replace(" ", "").split("->")
    inputs, letters = terms.split(",")
    rank = len(site.taken[0].shape)
    if "." in inputs + outputs:
        if not (inputs.startswith("...") and outputs.startswith("...")):
            return "an equation with dots inside"
        inputs, outputs = inputs[3:], outputs[3:]
    x = site.first
    place = x.axis - rank + len(inputs)
    letter = inputs[place] if 0 <= place < len(inputs) else ""
    if not letter or letter not in letters or letter in outputs:
        return "channels that the equation does not sum over"
    kernel = to_numpy(layer.kernel)
    site.weight(layer.kernel, letters.index(letter), x.ids)
    dims = site.taken[0].shape
    dots = dims[1 : rank - len(inputs)]
    rest = [
        n for i, n in zip(inputs[::-1], dims[::-1], strict=False) if i not in letters
    ]
    site.multiplies(layer.kernel, (*dots, *(rest if dots else rest[:-1])))
    rows = np.moveaxis(kernel, letters.index(letter), 0)
    last = outputs[-1]
    axis = len(site.shape) - 1
    if last in inputs or last not in letters:
        made = site.survey.unknown(site.outputs[0])
        site.pin(made.ids, "channels that the equation takes from the input")
        pinned = made.ids[:1]
        site.read(x, pinned, np.abs(rows).reshape(1, 1, x.n, -1).max(-1, keepdims=True))
        return made
    out = site.fresh(kernel.shape[letters.index(last)])
    site.weight(layer.kernel, letters.index(last), out)
    if layer.bias is not None and last in (layer.bias_axes or ""):
        site.weight(layer.bias, layer.bias_axes.index(last), out)

    def write(config, stays):
        shape = config["output_shape"]
        shape = [shape] if isinstance(shape, int) else list(shape)
        config["output_shape"] = (*shape[:-1], int(stays.sum()))

    site.size("output_shape", out, write)
    others = letters.replace(letter, "")
    rows = np.moveaxis(rows, 1 + others.index(last), -1)
    site.read(x, out, np.abs(rows).reshape(x.n, -1, len(out)).swapaxes(0, 1)[:, None])
    return ended(site, Channels(axis, out, *ANY))


def embedding(site: Site) -> Answer:
    """Each entry of the vectors is a channel."""
    layer = site.operation
    table = to_numpy(layer.embeddings)
    out = site.fresh(table.shape[1])
    site.weight(layer.embeddings, 1, out)
    site.size("output_dim", out)
    low, high = table.min(axis=0), table.max(axis=0)
    return Channels(len(site.shape) - 1, out, low, high)
