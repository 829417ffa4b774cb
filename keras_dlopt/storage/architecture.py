"""Keras config trees as compact data without module names, and back.

`Conv2D(...)` becomes `{"@": "Conv2D", "config": {...}}`. A tensor in a Functional graph
becomes `{"@t": [layer, node, output]}`. What the file cannot say, it cannot ask for.
"""

from collections.abc import Mapping
from typing import Any

import keras

from keras_dlopt.codecs.dtypes import NAMES
from keras_dlopt.errors import FormatError
from keras_dlopt.storage.allowed import (
    FUNCTION,
    REFUSED,
    builtin,
    check_paths,
    custom,
    functions,
    refuse,
    short_names,
)

EXTRAS = ("build_config", "name", "inbound_nodes", "shared_object_id")
PLAIN = ("__slice__", "__ellipsis__", "__numpy__", "__tensor__")
MARKS = ("@", "@t", "class_name")


def encode(value: Any) -> Any:
    """Compact form of what `keras.saving.serialize_keras_object` returned.

    Raises:
        FormatError: if it holds code or something else that no file may hold.
    """
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "class_name" not in value:
        for mark in MARKS:
            if mark in value:
                raise refuse(f"a dict with the key {mark!r}", "that key has a meaning")
        return {k: encode(v) for k, v in value.items()}
    name, config = value["class_name"], value["config"]
    if name == "__keras_tensor__":
        return {"@t": config["keras_history"]}
    if name == FUNCTION:
        return {"@": FUNCTION, "config": _function_key(value)}
    short = name if name in PLAIN else _short_name(value)
    out = {"@": short, "config": encode(config)}
    for extra in EXTRAS:
        if value.get(extra) is not None:
            out[extra] = encode(value[extra])
    return out


def _function_key(value: dict[str, Any]) -> str:
    name, module = str(value["config"]), str(value.get("module"))
    if module == "builtins" or module == "keras.activations":
        return name
    if module.split(".")[0] == "keras":
        raise refuse(f"{module}.{name}", "only activation functions may be named")
    registered = value.get("registered_name") or name
    return registered if ">" in registered else f">{name}"


def _short_name(value: dict[str, Any]) -> str:
    name, module = value["class_name"], str(value.get("module"))
    if module.split(".")[0] != "keras":
        registered = value.get("registered_name") or name
        if name.startswith("__"):
            raise refuse(name, "it holds Python code or an unknown kind of object")
        return registered if ">" in registered else f">{registered}"
    if name in REFUSED:
        raise refuse(name, REFUSED[name])
    short = short_names().get(_class_at(module, name))
    if short is None:
        raise refuse(
            f"{module}.{name}", "it is no public layer, initializer or the like"
        )
    return short


def _class_at(module: str, name: str) -> Any:
    """The class that Keras describes by one of its public places, or by its home."""
    place: Any = keras
    for part in [*module.split(".")[1:], name]:
        place = getattr(place, part, None)
    return place


def decode(value: Any, custom_objects: Mapping[str, Any], used: dict[str, Any]) -> Any:
    """The form that `keras.saving.deserialize_keras_object` reads.

    Args:
        value: what `encode` returned, out of a file that nobody vouches for.
        custom_objects: the caller's own.
        used: receives the classes met, by the names that Keras will look up.

    Raises:
        FormatError: if it names anything that is not allowed.
    """
    if isinstance(value, list):
        return [decode(v, custom_objects, used) for v in value]
    if not isinstance(value, dict):
        return value
    if "class_name" in value:
        raise refuse(str(value["class_name"]), "the file spells out a module or class")
    if set(value) == {"@t"}:
        return _tensor(value["@t"])
    if "@" not in value:
        return {k: decode(v, custom_objects, used) for k, v in value.items()}
    name, config = value["@"], value.get("config")
    if not isinstance(name, str) or set(value) - {"@", "config", *EXTRAS}:
        raise refuse(f"{name!s:.80}", f"the keys {sorted(value)} have no meaning here")
    if name == FUNCTION:
        return _function(config, custom_objects, used)
    out = _class(name, custom_objects, used)
    out["config"] = decode(config, custom_objects, used)
    _check_plain(name, out["config"])
    check_paths(name, out["config"])
    for extra in EXTRAS:
        if extra in value:
            out[extra] = decode(value[extra], custom_objects, used)
    return out


def _tensor(history: Any) -> dict[str, Any]:
    ok = isinstance(history, list) and len(history) == 3
    if not ok or not isinstance(history[0], str):
        raise refuse(f"{history!s:.80}", "it names no tensor of a graph")
    # Keras takes the shape from the layer that makes the tensor.
    config = {"shape": [], "dtype": "float32", "keras_history": history}
    return {"class_name": "__keras_tensor__", "config": config}


def _function(
    name: Any, custom_objects: Mapping[str, Any], used: dict[str, Any]
) -> dict[str, Any]:
    if not isinstance(name, str):
        raise refuse(f"{name!s:.80}", "a function is given by its name")
    if ">" in name:
        key = name.removeprefix(">")
        used[key] = custom(name, custom_objects)
        return {
            "class_name": FUNCTION,
            "config": key,
            "module": None,
            "registered_name": key,
        }
    if name not in functions():
        raise refuse(name, "it is no activation function of Keras")
    return {
        "class_name": FUNCTION,
        "config": name,
        "module": "builtins",
        "registered_name": name,
    }


def _class(
    name: str, custom_objects: Mapping[str, Any], used: dict[str, Any]
) -> dict[str, Any]:
    if name in PLAIN:
        return {"class_name": name}
    if ">" in name:
        key = name.removeprefix(">")
        used[key] = custom(name, custom_objects)
    elif name in REFUSED:
        raise refuse(name, REFUSED[name])
    elif name in builtin():
        key = name
        used[key] = builtin()[name]
    else:
        raise refuse(name, "it is no public layer, initializer or the like")
    # The class itself is handed over: no version of Keras need know its place.
    own = key.rpartition(">")[2]
    return {"module": None, "class_name": own, "registered_name": key}


def _check_plain(name: str, config: Any) -> None:
    if name in ("__numpy__", "__tensor__"):
        dtype = config.get("dtype") if isinstance(config, dict) else None
        if dtype not in NAMES:
            raise refuse(name, f"its dtype is {dtype!s:.80}, not one of {NAMES}")


def slim(value: Any) -> Any:
    """Leaves out input shapes of Keras' own layers where the model gives them anyway.

    A Functional model calls its layers while it is rebuilt, and a Sequential one with
    a known input shape builds them.
    """
    if isinstance(value, list):
        return [slim(v) for v in value]
    if not isinstance(value, dict):
        return value
    out = {k: slim(v) for k, v in value.items()}
    config = out.get("config")
    if out.get("@") in ("Functional", "Sequential") and isinstance(config, dict):
        known = out["@"] == "Functional" or config.get("build_input_shape")
        for layer in config.get("layers", []):
            if known and ">" not in layer["@"]:
                layer.pop("build_config", None)
    return out


def rebuild(tree: Any, *, custom_objects: Mapping[str, Any]) -> keras.Model:
    """A model, with fresh weights, from its compact form.

    Raises:
        FormatError: if the tree is not allowed or gives no model.
    """
    used: dict[str, Any] = {}
    try:
        config = decode(tree, custom_objects, used)
        if not isinstance(config, dict) or "class_name" not in config:
            raise refuse(f"{tree!s:.40}", "the file describes no model")
        model = keras.saving.deserialize_keras_object(
            config, custom_objects={**custom_objects, **used}, safe_mode=True
        )
    except FormatError:
        raise
    except Exception as error:
        raise FormatError(
            "The model cannot be rebuilt from its description in the file "
            f"({type(error).__name__}: {error!s:.500}). If it has classes of its own, "
            "pass their present versions in custom_objects."
        ) from error
    if not isinstance(model, keras.Model):
        raise FormatError(
            f"The file describes a {type(model).__name__}, not a keras.Model. Pass a "
            "file written by save_compressed."
        )
    return model
