"""Rules of recurrent layers, whose units are channels, and of attention's heads."""

from typing import Any

import keras
import numpy as np

from keras_dlopt.graph.symbolic import Node
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.surgery.bounds import is_elementwise
from keras_dlopt.surgery.channels import Channels
from keras_dlopt.surgery.rules.weighted import Answer
from keras_dlopt.surgery.survey import ANY, Place, Site


def recurrent(site: Site) -> Answer:
    """LSTM, GRU and SimpleRNN: a unit leaves with all its gates and states."""
    states = site.given[1:]
    if any(one.axis != 1 or one.n != site.operation.units for one in states):
        return "an initial state whose channels are not the units"
    out = _units(site, site.operation, site.along(2))
    if isinstance(out, str):
        return out
    for state in states:
        site.join(state.ids, out)
    site.size("units", out)
    return [Channels(len(t.shape) - 1, out, *ANY) for t in site.outputs]


def _units(site: Site, layer: Any, x: Channels) -> np.ndarray | str:
    """Ties the weights of a recurrent layer; its units, or why there are none."""
    cell = layer.cell
    used = [getattr(cell, n, None) for n in ("activation", "recurrent_activation")]
    if not all(is_elementwise(function) for function in used):
        return "an activation that may mix channels"
    out = site.fresh(cell.units)
    gates = cell.kernel.shape[1] // cell.units
    wide = np.tile(out, gates)
    site.weight(cell.kernel, 0, x.ids)
    site.weight(cell.kernel, 1, wide)
    site.weight(cell.recurrent_kernel, 0, out)
    site.weight(cell.recurrent_kernel, 1, wide)
    site.weight(cell.bias, -1, wide)
    for kernel, read in (
        (cell.kernel, x),
        (cell.recurrent_kernel, Channels(2, out, *_clip(site))),
    ):
        rows = np.abs(to_numpy(kernel)).reshape(read.n, gates, 1, cell.units)
        site.read(read, out, rows.transpose(1, 2, 0, 3))
        site.multiplies(kernel, site.taken[0].shape[1:2])
    return out


def _clip(site: Site) -> tuple[Any, Any]:
    return np.asarray(-site.survey.largest), np.asarray(site.survey.largest)


def bidirectional(site: Site) -> Answer:
    """Two recurrent layers, side by side or joined."""
    layer = site.operation
    if len(site.given) > 1 or len(site.outputs) > 1:
        return "a recurrent layer with states"
    x, sides = site.along(2), []
    for name, inner in (
        ("layer", layer.forward_layer),
        ("backward_layer", layer.backward_layer),
    ):
        out = _units(site, inner, x)
        if isinstance(out, str):
            return out

        def write(config: dict[str, Any], stays: np.ndarray, name: str = name) -> None:
            config[name]["config"]["units"] = int(stays.sum())
            config[name].pop("build_config", None)  # of the old input

        site.size(name, out, write, makes=f"/{name}")
        sides.append(out)
    site.join(*sides)  # Keras takes both to be equally wide
    ids = np.concatenate(sides) if layer.merge_mode == "concat" else sides[0]
    return Channels(len(site.shape) - 1, ids, *ANY)


def attention(site: Site) -> Answer:
    """MultiHeadAttention: a head leaves with its queries, keys and values."""
    layer, rank = site.operation, len(site.shape)
    given = dict(zip(("query", "value", "key"), site.args, strict=False)) | site.kwargs
    given.setdefault("key", None)
    if given["key"] is None:
        given["key"] = given["value"]
    places = {id(tensor): i for i, tensor in enumerate(site.taken)}
    names = ("query", "value", "key")
    if rank != 3:
        return "attention over more than one axis"
    if len(site.outputs) > 1 or len(places) > len({id(given[n]) for n in names}):
        return "attention with a mask or with its scores"
    weights = {tuple(v.path.split("/")[-2:]): v for v in layer.weights}
    heads = site.fresh(layer.num_heads)
    for name in names:
        x = site.along(rank - 1, index=places[id(given[name])])
        kernel = weights[name, "kernel"]
        site.weight(kernel, 0, x.ids)
        site.weight(kernel, 1, heads)
        site.weight(weights.get((name, "bias")), 0, heads)
        rows = np.abs(to_numpy(kernel)).transpose(2, 0, 1)
        site.read(x, heads, rows[:, None])
        site.multiplies(kernel, given[name].shape[1:-1])
    kernel = weights["attention_output", "kernel"]
    out = site.fresh(site.shape[-1])
    site.weight(kernel, 0, heads)
    site.weight(kernel, 2, out)
    site.weight(weights.get(("attention_output", "bias")), 0, out)
    site.multiplies(kernel, site.shape[1:-1])
    rows = np.abs(to_numpy(kernel)).transpose(1, 0, 2)
    site.read(Channels(rank - 1, heads, *_clip(site)), out, rows[:, None])
    site.size("num_heads", heads, makes="/heads")
    site.survey.heads.add(f"{site.place.path}/heads")
    site.size("output_shape", out)
    lengths = given["query"].shape[1], given["value"].shape[1]
    if None not in lengths:
        width = kernel.shape[1] + weights["query", "kernel"].shape[2]
        site.place.products.append((heads, lengths[0] * lengths[1] * width))
    return Channels(rank - 1, out, *ANY)


def time_distributed(site: Site) -> Answer:
    """A layer at each step, by the rule of that layer."""
    inner = site.operation.layer
    rule = site.survey.rule_of(inner)
    if isinstance(rule, str):
        return rule
    if site.first.axis == 1 or len(site.given) > 1 or len(site.outputs) > 1:
        return "channels along the steps, or several tensors"
    given, made = (
        keras.KerasTensor((t.shape[0], *t.shape[2:]), dtype=t.dtype)
        for t in (site.taken[0], site.outputs[0])
    )
    # No call is counted: constants do not go into its bias.
    place = Place(site.place.path, inner)
    node = Node(inner, (given,), {}, [given], [made])
    part = Site(site.survey, place, node, [site.first.moved(site.first.axis - 1)])
    found = rule(part)
    _taken_over(site, place)
    return found.moved(found.axis + 1) if isinstance(found, Channels) else found


def _taken_over(site: Site, place: Place) -> None:
    """What hangs on the channels inside hangs on them outside, at every step."""
    for variable, axes in place.weights.values():
        for axis, ids in axes.items():
            site.weight(variable, axis, ids)
        uses = place.uses.get(id(variable), 0)
        if uses is None or uses > 0:
            steps = site.taken[0].shape[1]
            site.multiplies(variable, (steps, uses))

    def forget(config: dict[str, Any], stays: np.ndarray) -> None:
        config["layer"].pop("build_config", None)  # of the old input

    site.size("layer", site.first.ids, forget, makes=None)
    for name, (ids, write) in place.sizes.items():

        def outside(config: dict[str, Any], stays: np.ndarray, write=write) -> None:
            write(config["layer"]["config"], stays)

        site.size(name, ids, outside, makes=None)
