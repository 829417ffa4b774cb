"""Models that TFMOT wrapped, from their files into Keras 3."""

import json
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_dlopt import _compat
from keras_dlopt.config import encode
from keras_dlopt.errors import FormatError
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.graph.walk import children
from keras_dlopt.interop.tfmot import files, legacy
from keras_dlopt.interop.tfmot.pruning import ConstantSparsity, PolynomialDecay
from keras_dlopt.interop.tfmot.quantization import INITIAL_RANGE, MOMENTUM
from keras_dlopt.select import at
from keras_dlopt.transforms import (
    Cluster,
    FakeQuant,
    FakeQuantActivation,
    Prune,
    Recipe,
    Transform,
    TransformedModel,
)
from keras_dlopt.transforms.cluster import nearest
from keras_dlopt.transforms.prune.pattern import Unstructured

_SCHEDULES = {"PolynomialDecay": PolynomialDecay, "ConstantSparsity": ConstantSparsity}
# A frozen range needs one step to observe; these come observed.
_FROZEN = 1
_AS_FROZEN = {"frozen": np.float32(1), "last": _FROZEN}

Planned = dict[str, tuple[Transform, dict[str, Any]]]


def load_model(path: str | Path) -> keras.Model:
    """A tf_keras model that TFMOT wrapped, in Keras 3, with its masks and ranges.

    Reads data only: nothing in the file is run, and TFMOT is not needed. Ranges are
    frozen as they were trained, so the model predicts what it did in TFMOT. Masks and
    shared values can be trained on; the schedule of a pruned model goes on where it
    was.

    Args:
        path: an `.h5` file or a `SavedModel` folder of a Sequential or Functional
            model.

    Returns:
        A `TransformedModel`, or a plain model if nothing in it was wrapped.

    Raises:
        ConfigError: if there is no such file.
        FormatError: for a file that is not such a model, and for layers that Keras 3
            does not have or that hold code.

    Warns:
        UserWarning: about ranges that have no place here: those before an activation
            that is fused into its layer.
    """
    source = files.read(Path(path))
    stored = sum(a.size for own in source.arrays.values() for a in own.values())
    try:
        with _compat.limited_variables(stored):
            return _converted(source, path)
    except FormatError:
        raise
    except Exception as error:  # Keras raises a dozen kinds for configs that are none
        raise FormatError(
            f"{str(path)!r} describes no model that Keras 3 can build "
            f"({type(error).__name__}: {error!s:.500})."
        ) from error


def _converted(source: files.LegacyModel, path: str | Path) -> keras.Model:
    model, wrapped, inputs = legacy.plain_model(source.kind, source.config)
    if not model.built:
        raise FormatError(
            f"{str(path)!r} does not say the shape of its inputs. Call the model once "
            "in tf_keras and save it again."
        )
    layers = {layer.name: layer for layer in children(model)}
    planned: Planned = {}
    for one in wrapped:
        arrays = source.arrays.get(one.name, {})
        layer = layers.get(one.inner)
        if layer is not None and arrays:
            extra = _set_weights(layer, arrays)
            planned |= _plan(one, layer, extra, arrays)
    if inputs is not None and inputs in source.arrays:
        planned |= _plan_input(model, source.arrays[inputs], inputs)
    return _transformed(model, planned) if planned else model


def _set_weights(layer: Any, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gives the layer its weights; returns the arrays that are not its own."""
    names = [v.path.split("/")[-1] for v in layer.weights]
    if set(names) <= set(arrays) and len(set(names)) == len(names):
        layer.set_weights([arrays[name] for name in names])
        return {k: v for k, v in arrays.items() if k not in names}
    # Names that repeat, as in Bidirectional: both frameworks keep one order.
    own = list(arrays.values())[: len(names)]
    if [v.shape for v in own] != [tuple(v.shape) for v in layer.weights]:
        raise FormatError(
            f"The arrays of layer {layer.name!r} do not fit: "
            f"{[v.shape for v in own]} in the file, "
            f"{[tuple(v.shape) for v in layer.weights]} in Keras 3."
        )
    layer.set_weights(own)
    return dict(list(arrays.items())[len(names) :])


def _plan(one: legacy.Wrapped, layer, extra, arrays) -> Planned:
    if one.wrapper == legacy.PRUNED:
        return _plan_pruned(one, layer, extra)
    if one.wrapper in legacy.QUANTIZED:
        return _plan_quantized(one, extra)
    if one.wrapper is not None:
        return _plan_clustered(one, layer, extra)
    return {}


def _plan_pruned(one, layer, extra) -> Planned:
    spec = one.config["pruning_schedule"]
    if spec["class_name"] not in _SCHEDULES:
        raise FormatError(
            f"{one.inner!r} was pruned by a schedule of its own, "
            f"{spec['class_name']!r}. Known are {sorted(_SCHEDULES)}. Strip the model "
            "in TFMOT, or prune it anew."
        )
    schedule = _SCHEDULES[spec["class_name"]](**spec["config"])
    prune = Prune(schedule, pattern=Unstructured(ties="keep"))
    last = int(extra.get("pruning_step", 0)) - 1  # TFMOT counts from 1
    return {
        f"{one.inner}/{name}": (prune, {"mask": mask, "last": last})
        for name, mask in _masks(layer, extra)
    }


def _masks(layer, extra):
    """(weight name, mask) of each; TFMOT numbers the masks of a layer with several."""
    masks = [v for k, v in extra.items() if k.startswith("mask") or "/mask" in k]
    masks += [v for k, v in extra.items() if k.startswith("pruning_vars/")]
    weights = [v for v in layer.weights if len(v.shape) > 1]
    for weight in weights:
        for i, mask in enumerate(masks):
            if mask.shape == tuple(weight.shape):
                yield weight.path.split("/")[-1], masks.pop(i)
                break


def _plan_clustered(one, layer, extra) -> Planned:
    config = one.config
    planned: Planned = {}
    zeros = bool(config.get("preserve_sparsity"))
    for weight in layer.weights:
        name = weight.path.split("/")[-1]
        centroids = extra.get(f"cluster_centroids_{name}")
        if centroids is None:
            continue
        cluster = Cluster(
            centroids.shape[-1] - zeros,
            per_channel=centroids.ndim > 1,
            iterations=0,
            reassign=1,
            gradient="mean" if "AVG" in str(config) else "sum",
            preserve_zeros=zeros,
        )
        value = np.asarray(keras.ops.convert_to_numpy(weight.value))
        state = _shared_values(value, centroids, zeros)
        planned[f"{one.inner}/{name}"] = (cluster, state)
    return planned


def _shared_values(value, centroids, zeros: bool) -> dict[str, np.ndarray]:
    """The state of `Cluster` for the centroids of TFMOT, one of which may be zero."""
    rows = centroids.reshape(-1, centroids.shape[-1])
    channels = value.reshape(-1, len(rows))
    kept, index = [], np.zeros(channels.shape, "int32")
    for i, row in enumerate(rows):
        best = nearest(channels[:, i], row)
        if zeros:
            zero = int(np.abs(row).argmin())
            place = best - (best > zero) + i * (row.size - 1) + 1
            index[:, i] = np.where(best == zero, 0, place)
            row = np.delete(row, zero)
        else:
            index[:, i] = best + i * row.size
        kept.append(row)
    shared = np.stack(kept) if centroids.ndim > 1 else kept[0]
    return {
        "centroids": shared,
        "index": index.reshape(value.shape),
        "on": np.ones((), "float32"),
    }


def _plan_quantized(one, extra) -> Planned:
    planned: Planned = {}
    ranges = {k.removesuffix("_min"): k for k in extra if k.endswith("_min")}
    for name, key in ranges.items():
        low, high = extra[key], extra[f"{name}_max"]
        if name in ("post_activation", "output"):
            planned[f"{one.inner}/output"] = _range(low, high, "moving_average")
        elif name == "pre_activation":
            warnings.warn(
                f"{one.inner!r} has a range before its activation, which is fused "
                "here; it is left out. keras_dlopt.split_activations(model) makes "
                "activations layers of their own.",
                stacklevel=5,
            )
        else:
            quant = FakeQuant(bits=8, per_channel=low.ndim > 0, freeze=_FROZEN)
            state = {"low": low, "high": high, **_AS_FROZEN}
            planned[f"{one.inner}/{name}"] = (quant, state)
    return planned


def _range(low, high, observer: str) -> tuple[Transform, dict[str, Any]]:
    initial = INITIAL_RANGE if observer == "moving_average" else None
    quant = FakeQuantActivation(
        momentum=MOMENTUM, initial=initial, observer=observer, freeze=_FROZEN
    )
    state = {"low": low, "high": high, "seen": np.float32(1), **_AS_FROZEN}
    return quant, state


def _plan_input(model, arrays, name: str) -> Planned:
    """The quantizer of the model's input sits at the first layers' inputs."""
    low, high = arrays[f"{name}_min"], arrays[f"{name}_max"]
    inputs = keras.layers.InputLayer
    first = [la for la in children(model) if not isinstance(la, inputs)]
    if not isinstance(model, keras.Sequential):
        given = {id(t) for t in model.inputs}
        first = [la for la in first if given & {id(t) for t in _tensors(la.input)}]
    return {f"{la.name}/input": _range(low, high, "min_max") for la in first[:1]}


def _tensors(value) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _transformed(model: keras.Model, planned: Planned) -> TransformedModel:
    known = {t.path for t in weight_targets(model)}
    kept = {p: v for p, v in planned.items() if v[0].kind == "activation" or p in known}
    groups: dict[str, list[str]] = {}
    for path, (chosen, _) in kept.items():
        groups.setdefault(json.dumps(encode(chosen)), []).append(path)
    recipe = Recipe((at(*paths), kept[paths[0]][0]) for paths in groups.values())
    made = TransformedModel(model, recipe)
    for group in made.groups:
        for slot in group.slots:
            state = dict(kept[slot.target.path][1])
            last = state.pop("last", None)
            for name, value in state.items():
                variable = slot.state[name]
                variable.assign(
                    np.reshape(value, variable.shape).astype(variable.dtype)
                )
            if last is not None and last >= 0:
                group.last.assign(last)
        if isinstance(group.transform, Cluster):
            group.last.assign(0)
    return made
