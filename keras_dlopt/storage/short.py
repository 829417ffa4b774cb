"""The header of a small file without what any reader knows (docs/format.md).

A layer is written as what differs from a template, the config of its class in the
dictionary of the format. So nothing depends on the Keras that is installed, and a
description of eight layers takes 40 bytes instead of 180.
"""

import copy
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from keras_dlopt.codecs.container import NODE_VALUES
from keras_dlopt.codecs.reader import REPAIR
from keras_dlopt.errors import FormatError
from keras_dlopt.storage.dictionary import DICTIONARY

MARK, WITHOUT, BESIDE = "~", "-", "+"
OTHERS = ("base", "from")  # keys that stay as they are (version 5)
MOST_BYTES = 2**16  # of the text
# What follows from the layers of these, and so is in no template of theirs.
FOLLOWS = {
    "Functional": ("layers", "input_layers", "output_layers"),
    "Sequential": ("layers", "build_input_shape"),
}
KERNEL = ("kernel", "bias")
NORM = ("gamma", "beta")
VARIABLES = {
    **dict.fromkeys(("Dense", "Conv1D", "Conv2D", "Conv3D"), KERNEL),
    **dict.fromkeys(("DepthwiseConv2D", "Conv2DTranspose"), KERNEL),
    "BatchNormalization": (*NORM, "moving_mean", "moving_variance"),
    "LayerNormalization": NORM,
    "Embedding": ("embeddings",),
}
ODD = (AttributeError, IndexError, KeyError, RecursionError, TypeError)
SWITCHES = {"bias": "use_bias", "gamma": "scale", "beta": "center"}


@functools.cache
def templates() -> dict[str, dict[str, Any]]:
    """By name, the config of the last node of that name in the dictionary's text."""
    text, decoder = DICTIONARY.decode(), json.JSONDecoder()
    found = {}
    for match in re.finditer(r'\{"@":"([^"]+)"', text):
        try:
            node, _ = decoder.raw_decode(text, match.start())
        except ValueError:  # the text is cut there
            continue
        if isinstance(node.get("config"), dict):
            follows = FOLLOWS.get(node["@"], ())
            config = {k: v for k, v in node["config"].items() if k not in follows}
            assert json.dumps(config).count(",") < NODE_VALUES
            found[match.group(1)] = config
    return found


def shorten(header: Mapping[str, Any]) -> dict[str, Any] | None:
    """The short form of a header; None if it has none that gives it again."""
    more = {k: v for k, v in header.items() if k in OTHERS}
    if set(header) != {"model", "paths", *more}:
        return None
    try:
        short = {"model": _shorter(header["model"]), **more}
        if header["paths"] != _paths(header["model"]):
            short["paths"] = header["paths"]
        return short if _same(lengthen(short), header) else None
    except (FormatError, *ODD):
        return None


def lengthen(short: Any) -> dict[str, Any]:
    """The header of a short form.

    Raises:
        FormatError: if it is damaged.
    """
    try:
        model = _longer(short["model"], {})
        more = set(short) - {"model", "paths", *OTHERS}
        if more:
            raise KeyError(*more)
        return {"paths": _paths(model), **short, "model": model}
    except ODD as error:
        raise FormatError(
            f"The file is damaged: its short header means nothing ({error!s:.80}). "
            f"{REPAIR}"
        ) from error


def _longer(value: Any, beside: Mapping[str, Any]) -> Any:
    """A value in full; `beside` is what stands by the config of a node like it."""
    if isinstance(value, list):
        return [_longer(one, {}) for one in value]
    if not isinstance(value, dict):
        return value
    if MARK not in value:
        return {k: _longer(v, {}) for k, v in value.items()}
    name, without = value[MARK], value.get(WITHOUT, [])
    config = copy.deepcopy(templates()[name])
    own = {k: v for k, v in value.items() if k not in (MARK, WITHOUT, BESIDE)}
    if name in FOLLOWS:
        layers = _layers(own.pop("layers"), chained=name == "Functional")
        config["layers"] = layers
        more, about = _following(name, layers)
        config, beside = config | more, {**beside, **about}
    config |= {k: _longer(v, {}) for k, v in own.items()}
    for key in without:
        del config[key]
    more = {k: _longer(v, {}) for k, v in value.get(BESIDE, {}).items()}
    return {"@": name, "config": config, **beside, **more}


def _layers(values: list[Any], *, chained: bool) -> list[Any]:
    layers: list[Any] = []
    for value in values:
        name = _name(value) if chained and MARK in value else None
        beside = {} if name is None else _chained(name, layers)
        layers.append(_longer(value, beside))
    return layers


def _name(value: dict[str, Any]) -> Any:
    return value.get("name", templates()[value[MARK]]["name"])


def _chained(name: Any, before: list[Any]) -> dict[str, Any]:
    """What stands beside a layer that is called on the one before it."""
    called = []
    if before:
        tensor = {"@t": [before[-1]["config"]["name"], 0, 0]}
        called = [{"args": [tensor], "kwargs": {}}]
    return {"name": name, "inbound_nodes": called}


def _following(name: str, layers: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of a model's config, and beside it, follows from its layers."""
    first, last = layers[0], layers[-1]
    if name == "Sequential":
        shape = first["config"].get("batch_shape")
        return {"build_input_shape": shape}, {"build_config": {"input_shape": shape}}
    ends = {
        "input_layers": [first["config"]["name"], 0, 0],
        "output_layers": [last["config"]["name"], 0, 0],
    }
    return ends, {"build_config": {"input_shape": None}}


def _shorter(value: Any, beside: Mapping[str, Any] | None = None) -> Any:
    """The short form of a value; of nodes that have none, of what is in them."""
    if isinstance(value, list):
        return [_shorter(one) for one in value]
    if not isinstance(value, dict):
        return value
    name, config = value.get("@"), value.get("config")
    plain = {k: _shorter(v) for k, v in value.items()}
    if name not in templates() or not isinstance(config, dict):
        return plain
    beside = beside or {}
    expected, short = dict(templates()[name]), {MARK: name}
    if name in FOLLOWS:
        if not config.get("layers"):
            return plain
        more, about = _following(name, config["layers"])
        expected, beside = expected | more, {**beside, **about}
        short["layers"] = _short_layers(config["layers"], name == "Functional")
    for key, own in config.items():
        if key != "layers" and (key not in expected or not _same(expected[key], own)):
            short[key] = _shorter(own)
    without = [key for key in expected if key not in config]
    if without:
        short[WITHOUT] = without
    around = {k: v for k, v in value.items() if k not in ("@", "config")}
    more = {k: v for k, v in around.items() if k not in beside or beside[k] != v}
    if more:
        short[BESIDE] = _shorter(more)
    return short if set(beside) <= set(around) else plain


def _short_layers(layers: list[Any], chained: bool) -> list[Any]:
    """Each layer in the short form, beside which stands what does for most."""
    return [
        _shorter(one, _chained(one["config"]["name"], layers[:i]) if chained else None)
        for i, one in enumerate(layers)
    ]


def _paths(model: dict[str, Any]) -> list[str]:
    """The variables that the layers of a model are known to have."""
    config = model["config"]
    start = f"{config['name']}/" if model["@"] == "Sequential" else ""
    return [
        f"{start}{layer['config']['name']}/{variable}"
        for layer in config.get("layers", [])
        for variable in VARIABLES.get(layer["@"], ())
        if layer["config"].get(SWITCHES.get(variable), True)
    ]


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same in JSON: 1 is neither 1.0 nor true."""
    first, second = (json.dumps(value, sort_keys=True) for value in (one, other))
    return first == second
