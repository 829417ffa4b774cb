"""A learner's state in one file: data only, written whole or not at all."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_dlopt import files
from keras_dlopt.codecs.dtypes import dtype_of
from keras_dlopt.errors import FormatError

_FORMAT = "keras_dlopt online learner"
_VERSION = 1
_HEADER = "header"
_LARGEST = 2**36


def write_state(
    path: Path, header: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes a JSON header and arrays as an `.npz` file.

    Types that NumPy's format does not know (bfloat16) are written as their bytes.

    Raises:
        ConfigError: if the file cannot be written; an old one stays as it is.
    """
    kinds = {name: str(a.dtype) for name, a in arrays.items()}
    told = {
        "format": _FORMAT,
        "version": _VERSION,
        "arrays": {name: [kinds[name], list(a.shape)] for name, a in arrays.items()},
        "header": header,
    }
    memory = io.BytesIO()
    plain = {name: _bytes(a) for name, a in arrays.items()}
    text = np.frombuffer(json.dumps(told).encode(), "uint8")
    np.savez(memory, **{_HEADER: text}, **plain)  # type: ignore[arg-type]
    files.write_atomic(path, memory.getvalue())


def _bytes(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array)
    if array.dtype.kind in "biuf":
        return array
    return np.frombuffer(array.tobytes(), "uint8")


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of a file that `write_state` wrote.

    Raises:
        ConfigError: if there is none, or it cannot be read.
        FormatError: for a damaged file, or another kind.
    """
    found = files.read_npz(files.read_limited(path, _LARGEST))
    told: Any = None
    if _HEADER in found:
        told = files.parse_json(found.pop(_HEADER).tobytes())
    if not isinstance(told, dict) or told.get("format") != _FORMAT:
        raise FormatError(
            f"{str(path)!r} is no state of an online learner. Give the path that "
            "save() was given."
        )
    if told.get("version") != _VERSION:
        raise FormatError(
            f"{str(path)!r} has version {told.get('version')!r}, and this release "
            f"reads {_VERSION}. Update keras-dlopt."
        )
    try:
        arrays = {
            name: _typed(found[name], kind, shape)
            for name, (kind, shape) in told["arrays"].items()
        }
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"{str(path)!r} is damaged: its arrays are not those that it names "
            f"({error}). Restore an older copy, or start anew."
        ) from error
    return told["header"], arrays


def _typed(array: np.ndarray, kind: str, shape: list[int]) -> np.ndarray:
    if str(array.dtype) != kind:
        array = np.frombuffer(array.tobytes(), dtype_of(kind))
    return array.reshape(shape)
