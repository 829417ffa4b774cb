"""Which classes and functions a compressed file may name.

The file holds short names only. They are looked up in tables of classes that are
already loaded; nothing named in a file is ever imported.
"""

import functools
import importlib
from collections.abc import Mapping
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import FormatError

NAMESPACES = (
    "layers",
    "initializers",
    "regularizers",
    "constraints",
    "dtype_policies",
    "quantizers",
)
# Code in the file, models in other files.
REFUSED = {
    "Lambda": "it holds Python code",
    "TFSMLayer": "it loads another file",
    "TorchModuleWrapper": "it holds pickled Python code",
    "JaxLayer": "it holds Python code",
    "FlaxLayer": "it holds Python code",
}
# Arguments that Keras reads from a file if they are text; in a file they are lists.
READ_FROM_PATHS = {
    "StringLookup": ("vocabulary", "idf_weights"),
    "IntegerLookup": ("vocabulary", "idf_weights"),
    "TextVectorization": ("vocabulary", "idf_weights"),
}
FUNCTION = "function"


@functools.cache
def builtin() -> dict[str, type]:
    """Short name -> class."""
    table = dict(_compat.unnamed_operations())
    for space in NAMESPACES:
        for name, value in sorted(vars(getattr(keras, space)).items()):
            usable = isinstance(value, type) and hasattr(value, "from_config")
            if usable and name not in REFUSED:
                table[name if space == "layers" else f"{space}.{name}"] = value
    return table | {"Sequential": keras.Sequential}


@functools.cache
def short_names() -> dict[type, str]:
    """Class -> short name; of several aliases the class's own name."""
    names: dict[type, str] = {}
    for short, cls in builtin().items():
        if cls not in names or short.rpartition(".")[2] == cls.__name__:
            names[cls] = short
    return names


@functools.cache
def functions() -> dict[str, Any]:
    """The activation functions of Keras."""
    skipped = ("get", "serialize", "deserialize")
    return {
        name: value
        for name, value in vars(keras.activations).items()
        if callable(value)
        and not isinstance(value, type)
        and not name.startswith("_")
        and name not in skipped
    }


def custom(key: str, custom_objects: Mapping[str, Any]) -> Any:
    """What a name outside Keras stands for in this process.

    Args:
        key: `"package>Name"` as registered, or `">Name"`.
        custom_objects: what the caller passed, by either form of the name.

    Raises:
        FormatError: if nobody here has given that name a meaning.
    """
    name = key.rpartition(">")[2]
    for known in (key, name):
        if known in custom_objects:
            return custom_objects[known]
    if key.startswith("keras_dlopt>"):
        importlib.import_module("keras_dlopt.layers")
        importlib.import_module("keras_dlopt.transforms")
    found = keras.saving.get_registered_object(key.removeprefix(">"))
    if found is None:
        raise UnknownName(
            f"Refused: the file names {key.removeprefix('>')!r}, which is neither part "
            "of Keras nor registered in this process. If you have it, import the "
            "module that registers it with keras.saving.register_keras_serializable, "
            f"or pass custom_objects={{{name!r}: ...}}."
        )
    return found


class UnknownName(FormatError):
    """A name that `custom_objects` could still explain."""


def check_paths(name: str, config: Any) -> None:
    """Refuses a class of Keras' own whose config would read some file.

    Raises:
        FormatError: if so.
    """
    for argument in READ_FROM_PATHS.get(name, ()):
        if isinstance(config, dict) and isinstance(config.get(argument), str):
            raise FormatError(
                f"Refused: {argument} of {name!r} is the path of a file, and a "
                "compressed file reads no other. Give the layer the list itself: "
                f"{argument}=[...]."
            )


def refuse(name: str, why: str) -> FormatError:
    """The error for something that may not be in a file."""
    return FormatError(
        f"Refused: {name!r} cannot be part of a compressed file, because {why}. Write "
        "a layer class instead and pass it as custom_objects={'Name': Class}."
    )
