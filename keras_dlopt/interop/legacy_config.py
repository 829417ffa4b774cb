"""Configs of Keras 2 as Keras 3 can read them."""

from typing import Any

_MODELS = ("Functional", "Model", "Sequential")


def for_keras_3(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a model, calls of models inside it counted from 0.

    Keras 2 counts the making of a nested model as its first call, Keras 3 does not, and
    finds the second one nowhere.

    Args:
        config: class name and config, as Keras 2 wrote them; it stays as it is.

    Example:
        >>> inner = {"class_name": "Sequential", "name": "in", "config": {"layers": []}}
        >>> last = {"class_name": "ReLU", "inbound_nodes": [[["in", 1, 0, {}]]]}
        >>> model = {"class_name": "Model", "config": {"layers": [inner, last]}}
        >>> for_keras_3(model)["config"]["layers"][1]["inbound_nodes"]
        [[['in', 0, 0, {}]]]
    """
    if config.get("class_name") not in _MODELS or "config" not in config:
        return config
    inside = config["config"]
    if isinstance(inside, list):  # a Sequential of the first versions
        return {**config, "config": [for_keras_3(one) for one in inside]}
    given = [for_keras_3(one) for one in inside.get("layers", [])]
    kinds = {str(one.get("name")): one["class_name"] for one in given}
    models = {name for name, kind in kinds.items() if kind in _MODELS}
    made = dict(inside)
    made["layers"] = [
        {**one, "inbound_nodes": _shifted(one["inbound_nodes"], models)}
        if "inbound_nodes" in one
        else one
        for one in given
    ]
    # Keras 3 itself takes one off where a Functional model makes an output.
    alone = {name for name in models if kinds.get(name) == "Sequential"}
    for ends in ("input_layers", "output_layers"):
        if ends in made:
            made[ends] = _shifted(made[ends], alone)
    return {**config, "config": made}


def _shifted(value: Any, models: set[str]) -> Any:
    """[name, call, tensor, ...] of a nested model with the call before it."""
    if isinstance(value, dict):
        return {name: _shifted(one, models) for name, one in value.items()}
    if not isinstance(value, list | tuple):
        return value
    counts = len(value) >= 3 and all(type(n) is int for n in value[1:3])
    if counts and isinstance(value[0], str):
        at = value[1] - (value[0] in models)
        return [value[0], max(at, 0), *(_shifted(v, models) for v in value[2:])]
    return [_shifted(one, models) for one in value]
