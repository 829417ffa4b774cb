"""Configs of tf_keras with TFMOT's wrappers, as configs of Keras 3 without them.

Only names of Keras' own layers, initializers, regularizers and constraints are taken
from the file; modules named in it are ignored, and layers that hold code are refused.
"""

import dataclasses
import inspect
from typing import Any

import keras

from keras_dlopt.errors import FormatError

PRUNED, CLUSTERED = "PruneLowMagnitude", ("ClusterWeights", "ClusterWeightsRNN")
QUANTIZED = ("QuantizeWrapper", "QuantizeWrapperV2")
WRAPPERS = (PRUNED, *CLUSTERED, "ClusterWeightsMHA", *QUANTIZED)
_ACTIVATION = "QuantizeAwareActivation"
_INPUT = "QuantizeLayer"
_HOMES = ("layers", "initializers", "regularizers", "constraints")
_CODE = ("Lambda", "TFSMLayer", "JaxLayer", "FlaxLayer", "TorchModuleWrapper")
_CELLS = ("cell", "layer", "backward_layer")


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """One layer of the file: how it was wrapped, and the plain layer inside."""

    name: str
    inner: str
    wrapper: str | None
    config: dict[str, Any]


def plain_model(kind: str, config: dict) -> tuple[keras.Model, list[Wrapped], Any]:
    """The model without wrappers, what they were, and the input quantizer's name.

    Raises:
        FormatError: for a layer that Keras 3 does not have, or that holds code.
    """
    config = _tuples(config)
    wrapped, layers, skipped, noted = [], [], {}, None
    for entry in config["layers"]:
        if entry["class_name"] == _INPUT:
            noted = entry["config"]["name"]
            nodes = entry.get("inbound_nodes") or [[[None]]]
            skipped[noted] = nodes[0][0]
            continue
        wrapped.append(_unwrapped(entry))
        layers.append(_layer(entry, wrapped[-1]))
    names = {w.name: w.inner for w in wrapped}
    result = {"name": config.get("name", "model"), "layers": layers}
    if kind == "Sequential":
        return keras.Sequential.from_config(result), wrapped, noted
    for layer, entry in zip(
        layers,
        (e for e in config["layers"] if e["class_name"] != _INPUT),
        strict=True,
    ):
        nodes = entry.get("inbound_nodes", [])
        layer["inbound_nodes"] = _renamed(nodes, names, skipped)
    for key in ("input_layers", "output_layers"):
        result[key] = _renamed(config[key], names, skipped)
    return keras.Model.from_config(result), wrapped, noted


def _unwrapped(entry: dict) -> Wrapped:
    config, kind = entry["config"], entry["class_name"]
    if kind not in WRAPPERS:
        return Wrapped(config["name"], config["name"], None, config)
    return Wrapped(config["name"], config["layer"]["config"]["name"], kind, config)


def _layer(entry: dict, wrapped: Wrapped) -> dict[str, Any]:
    source = entry if wrapped.wrapper is None else wrapped.config["layer"]
    found = _known(source, "layers")
    return {**found, "name": wrapped.inner, "inbound_nodes": []}


def _tuples(value: Any) -> Any:
    """Without the marks that SavedModel metadata put on tuples."""
    if isinstance(value, list):
        return [_tuples(v) for v in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "__tuple__":
        return _tuples(value["items"])
    return {k: _tuples(v) for k, v in value.items()}


def _known(data: dict, home: str) -> dict[str, Any]:
    """The serialized object under its Keras 3 class, with that class's arguments."""
    name, config = data["class_name"], dict(data.get("config") or {})
    cls = getattr(getattr(keras, home), name, None)
    if name in _CODE or not isinstance(cls, type):
        raise FormatError(
            f"The file names {name!r}, which is not one of Keras 3's own {home}, or "
            "holds code. Build the model in Keras 3 by hand and load its weights."
        )
    if home == "layers":
        config = _arguments(cls, config)
    return {
        "module": f"keras.{home}",
        "class_name": name,
        "config": {k: _value(k, v) for k, v in config.items()},
        "registered_name": None,
    }


def _arguments(cls: type, config: dict) -> dict[str, Any]:
    """What the constructor takes, and Keras' own three; tf_keras wrote more."""
    shape = config.get("batch_input_shape") or config.get("batch_shape")
    taken = {"name", "trainable", "dtype"}
    for base in cls.__mro__:
        if base is not object and "__init__" in vars(base):
            taken |= set(inspect.signature(base.__init__).parameters)  # type: ignore
    taken -= {"self", "args", "kwargs", "input_shape"}
    own = {k: v for k, v in config.items() if k in taken}
    if cls is keras.layers.InputLayer:
        own["batch_shape"] = shape
        own.pop("shape", None)
    return own


def _value(key: str, value: Any) -> Any:
    if key == "dtype" and isinstance(value, dict):
        return value["config"]["name"]
    if key == "axis" and isinstance(value, list) and len(value) == 1:
        return value[0]
    if not isinstance(value, dict) or "class_name" not in value:
        return value
    if value["class_name"] == _ACTIVATION:
        return value["config"]["activation"]
    if key in _CELLS:
        return _known(value, "layers")
    for home in _HOMES[1:]:
        if hasattr(getattr(keras, home), value["class_name"]):
            return _known(value, home)
    return _known(value, "layers")


def _renamed(nodes: Any, names: dict[str, str], skipped: dict[str, Any]) -> Any:
    """Connections by the names of the plain layers, past the skipped ones."""
    if not isinstance(nodes, list):
        return nodes
    if nodes and isinstance(nodes[0], str):
        while nodes[0] in skipped:
            nodes = [*skipped[nodes[0]][:3], *nodes[3:]]
        return [names.get(nodes[0], nodes[0]), *nodes[1:]]
    return [_renamed(node, names, skipped) for node in nodes]
