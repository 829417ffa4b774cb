"""An independent copy of any Keras model that can describe itself."""

import warnings
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError


def _classes(layer: Any) -> dict[str, type]:
    """The user's own layer classes below a model, by name."""
    found = {} if _is_keras(type(layer)) else {type(layer).__name__: type(layer)}
    for sub in _compat.sublayers(layer):
        found |= _classes(sub)
    return found


def _is_keras(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "keras"


def copy_model(model: keras.Model) -> keras.Model:
    """A model with the same config and the same weights, sharing nothing.

    Raises:
        ModelError: if the model cannot be rebuilt from its config.
    """
    try:
        # The copy is compiled anew: a loss that no file could hold is no obstacle.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The object being serialized")
            config = keras.saving.serialize_keras_object(model)
        config.pop("compile_config", None)
        twin = keras.saving.deserialize_keras_object(
            config, custom_objects=_classes(model)
        )
        if not twin.built:
            twin.build_from_config(model.get_build_config() or {})
    except Exception as error:
        reason = " ".join(str(error).strip().split("\n\n")[0].split())
        raise ModelError(
            f"The model {model.name!r} cannot be copied from its config "
            f"({type(error).__name__}: {reason}). Give it get_config() and "
            "from_config(), or pass copy=False to work on the model itself."
        ) from error
    if [v.shape for v in twin.variables] != [v.shape for v in model.variables]:
        raise ModelError(
            f"The copy of {model.name!r} made from its config has other variables "
            f"({len(twin.variables)} instead of {len(model.variables)}, or other "
            "shapes). Create all variables in __init__() or build(), or pass "
            "copy=False to work on the model itself."
        )
    for new, old in zip(twin.variables, model.variables, strict=True):
        new.assign(keras.ops.convert_to_numpy(old.value))
    return twin
