"""What every export asks of its arguments, before the work."""

import os
from typing import Any

import keras

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.walk import check_built


def check_arguments(
    model: Any,
    path: str,
    *,
    suffix: str,
    data: Any = None,
    verify: bool = True,
    backends: tuple[str, ...] = ("tensorflow",),
) -> None:
    """Refuses what no file can be written from, or to.

    Args:
        model: to be exported.
        path: of the file or folder.
        suffix: that the path must have; empty for a folder.
        data: to be compared on.
        verify: whether anything is compared.
        backends: of Keras on which it works.

    Raises:
        ConfigError: for a wrong argument, a folder that cannot be written, or another
            backend.
        ModelError: for a model that is not built.
    """
    if keras.backend.backend() not in backends:
        raise ConfigError(
            f"This export works on {' and '.join(backends)}, and this process runs "
            f"Keras on {keras.backend.backend()!r}. Save the model with "
            "model.save('model.keras'), and export it in a process started with "
            "KERAS_BACKEND=tensorflow."
        )
    check_built(model)
    if not path.endswith(suffix):
        raise ConfigError(f"path must end in {suffix!r}. Received: {path!r}.")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ConfigError(
            f"Cannot write to the folder {folder!r}: it does not exist or is not "
            "writable. Create it first."
        )
    if data is not None and not verify:
        raise ConfigError(
            "data is compared only with verify=True. Pass one or neither."
        )
