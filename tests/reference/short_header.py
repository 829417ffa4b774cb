"""Short headers in full, written from docs/format.md alone. For tests only."""

import json

PARTS = {
    "kernel": "Dense Conv1D Conv2D Conv3D DepthwiseConv2D Conv2DTranspose",
    "bias": "Dense Conv1D Conv2D Conv3D DepthwiseConv2D Conv2DTranspose",
    "gamma": "BatchNormalization LayerNormalization",
    "beta": "BatchNormalization LayerNormalization",
    "moving_mean": "BatchNormalization",
    "moving_variance": "BatchNormalization",
    "embeddings": "Embedding",
}
OFF = {"bias": "use_bias", "gamma": "scale", "beta": "center"}


def template(dictionary: bytes, name: str) -> dict:
    """The config of the last whole node of a name."""
    text, start = dictionary.decode(), f'{{"@":"{name}"'
    at = len(text)
    while True:
        at = text.rindex(start, 0, at)
        try:
            return json.JSONDecoder().raw_decode(text[at:])[0]["config"]
        except (ValueError, KeyError):
            continue


def full(value, dictionary: bytes, around=None):
    """A value whose nodes are all in the long form."""
    if isinstance(value, list):
        return [full(one, dictionary) for one in value]
    if not isinstance(value, dict):
        return value
    if "~" not in value:
        return {key: full(one, dictionary) for key, one in value.items()}
    name, around = value["~"], dict(around or {})
    config = template(dictionary, name)
    given = {k: v for k, v in value.items() if k not in ("~", "-", "+", "layers")}
    if name in ("Functional", "Sequential"):
        layers = []
        for one in value["layers"]:
            beside = {}
            if name == "Functional" and "~" in one:
                own = one.get("name") or template(dictionary, one["~"])["name"]
                nodes = []
                if layers:
                    tensor = {"@t": [layers[-1]["config"]["name"], 0, 0]}
                    nodes = [{"args": [tensor], "kwargs": {}}]
                beside = {"name": own, "inbound_nodes": nodes}
            layers.append(full(one, dictionary, beside))
        shape = None
        if name == "Sequential":
            shape = layers[0]["config"].get("batch_shape")
            config["build_input_shape"] = shape
        else:
            config["input_layers"] = [layers[0]["config"]["name"], 0, 0]
            config["output_layers"] = [layers[-1]["config"]["name"], 0, 0]
        config["layers"] = layers
        around["build_config"] = {"input_shape": shape}
    for key, one in given.items():
        config[key] = full(one, dictionary)
    for key in value.get("-", ()):
        config.pop(key)
    for key, one in value.get("+", {}).items():
        around[key] = full(one, dictionary)
    return {"@": name, "config": config, **around}


def header(short: dict, dictionary: bytes) -> dict:
    """The header with its paths."""
    model = full(short["model"], dictionary)
    before = model["config"]["name"] + "/" if model["@"] == "Sequential" else ""
    paths = []
    for layer in model["config"].get("layers", []):
        for part, classes in PARTS.items():
            on = layer["config"].get(OFF.get(part), True)
            if layer["@"] in classes.split() and on:
                paths.append(f"{before}{layer['config']['name']}/{part}")
    return {"paths": paths, **short, "model": model}
