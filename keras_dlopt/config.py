"""Configs as plain data: objects to JSON-ready dicts and back.

Only classes registered with `keras.saving.register_keras_serializable` come back; no
module named in the data is ever imported.
"""

from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError

_OWN = "keras_dlopt>"


def encode(value: Any) -> Any:
    """`value` as JSON-ready data; objects become `{"class": ..., "config": ...}`.

    Raises:
        ConfigError: for an object of a class that is not registered.
    """
    if isinstance(value, np.generic):  # steps are often computed with NumPy
        value = value.item()
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    if isinstance(value, dict):
        return {k: encode(v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    name = keras.saving.get_registered_name(type(value))
    if keras.saving.get_registered_object(name) is None:
        raise ConfigError(
            f"{value!r} cannot be written as plain data: its class is not registered. "
            "Decorate it with @keras.saving.register_keras_serializable('my_package')."
        )
    return {"class": name.removeprefix(_OWN), "config": encode(value.get_config())}


def decode(value: Any) -> Any:
    """What `encode` wrote, as objects again.

    Raises:
        ConfigError: for a class that is not registered.
    """
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if set(value) != {"class", "config"}:
        return {k: decode(v) for k, v in value.items()}
    name, config = value["class"], value["config"]
    cls = keras.saving.get_registered_object(
        _OWN + name
    ) or keras.saving.get_registered_object(name)
    if cls is None:
        raise ConfigError(
            f"The class {name!r} is not known. Import the module that defines it "
            "first; it must be registered with "
            "keras.saving.register_keras_serializable."
        )
    return cls.from_config(decode(config))
