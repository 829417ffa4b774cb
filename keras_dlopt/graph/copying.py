"""An independent copy of any Keras model that can describe itself."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph import live
from keras_dlopt.graph.walk import custom_classes, layers_below
from keras_dlopt.runtime.values import to_numpy

_LOW = ("float16", "bfloat16")


def in_float32(model: keras.Model) -> keras.Model:
    """A copy that computes in float32; the model itself if it does so already.

    Weights of layers in float16, bfloat16 or mixed precision keep their values.

    Raises:
        ModelError: if the model cannot be rebuilt from its config.
    """
    below = layers_below(model)
    if not any(getattr(one, "compute_dtype", None) in _LOW for one in below):
        return model
    return copy_model(model, change=_wide)


def _wide(config: Any) -> Any:
    """A config with float32 in place of the shorter types."""
    if isinstance(config, list | tuple):
        return type(config)(_wide(one) for one in config)
    if not isinstance(config, dict):
        return config
    return {
        key: "float32" if key == "dtype" and _is_low(value) else _wide(value)
        for key, value in config.items()
    }


def _is_low(dtype: Any) -> bool:
    name = dtype.get("config", {}).get("name") if isinstance(dtype, dict) else dtype
    return isinstance(name, str) and name.removeprefix("mixed_") in _LOW


def copy_model(
    model: keras.Model, change: Callable[[Any], Any] | None = None
) -> keras.Model:
    """A model with the same config, weights and live state, sharing no variable.

    What was set after construction goes over as well: frozen layers and weights, plain
    attributes, and functions of this process, such as those of Lambda layers.

    Args:
        model: a Keras model; it stays as it is.
        change: what is done to its config first.

    Raises:
        ModelError: if the model cannot be rebuilt from its config.
    """
    try:
        twin = _from_config(model, change)
    except Exception as error:
        raise ModelError(
            f"The model {model.name!r} cannot be copied from its config "
            f"({reason(error)}). Give it get_config() and "
            "from_config(), or pass copy=False to work on the model itself."
        ) from error
    if sorted(_shapes(twin)) != sorted(_shapes(model)):
        raise ModelError(
            f"The copy of {model.name!r} made from its config has other variables "
            f"({len(twin.variables)} instead of {len(model.variables)}, or other "
            "shapes). Create all variables in __init__() or build(), or pass "
            "copy=False to work on the model itself."
        )
    if _shapes(twin) == _shapes(model):
        for new, old in zip(twin.variables, model.variables, strict=True):
            new.assign(to_numpy(old))
    else:  # in another order, as Keras' float8 layers have them once they are read
        live.carry_by_layers(model, twin)
    live.carry(model, twin)
    return twin


def _shapes(model: keras.Model) -> list[tuple[int, ...]]:
    return [tuple(v.shape) for v in model.variables]


def _from_config(model: Any, change: Callable[[Any], Any] | None) -> Any:
    with contextlib.ExitStack() as stack:
        functions = stack.enter_context(live.named_functions(model))
        # The copy is compiled anew: a loss that no file could hold is no obstacle.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="The object being serialized")
        config = keras.saving.serialize_keras_object(model)
        build_config = model.get_build_config() or {}
    config.pop("compile_config", None)
    config = config if change is None else change(config)
    classes = custom_classes(model)
    known = {**classes, **functions}
    with _compat.untraced_classes(classes.values()):
        twin = keras.saving.deserialize_keras_object(config, custom_objects=known)
        if not twin.built:
            twin.build_from_config(build_config)
    return twin


def reason(error: Exception) -> str:
    """The kind and the first paragraph of an error of Keras', in one line."""
    text = " ".join(str(error).strip().split("\n\n")[0].split())
    return f"{type(error).__name__}: {text[:200]}"
