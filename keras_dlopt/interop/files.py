"""Files of Keras 2 and Keras 3."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import keras

from keras_dlopt.errors import FormatError
from keras_dlopt.graph.walk import is_functional


class _Depthwise(keras.layers.DepthwiseConv2D):
    """What Keras 2 wrote: with `groups`, which Keras 3 does not know."""

    @classmethod
    def from_config(cls, config):
        config = {name: v for name, v in config.items() if name != "groups"}
        return keras.layers.DepthwiseConv2D.from_config(config)


def load(
    path: str | os.PathLike[str], *, custom_objects: Mapping[str, Any] | None = None
) -> keras.Model:
    """The model in a file of Keras 2 (`.h5`) or Keras 3 (`.keras`, `.h5`).

    Like `keras.models.load_model` in safe mode, and it also reads what Keras 2 wrote of
    depthwise convolutions. The model is not compiled.

    Args:
        path: of the file.
        custom_objects: name -> class or function, of those that are not Keras' own.

    Raises:
        FileNotFoundError: if there is none.
        FormatError: for a file that Keras 3 cannot read, with its reason.

    Example:
        >>> import tempfile
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.keras"
        >>> net.save(path)
        >>> load(path).count_params()
        10
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise FormatError(
            f"{path} is a folder. A SavedModel holds a program, and no layers that "
            "could be pruned or quantized. Give the .keras or .h5 file, or write one "
            "where the model was made: model.save('model.h5')."
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {os.fspath(path)!r}.")
    objects = dict(custom_objects or {})
    if path.suffix in (".h5", ".hdf5"):
        objects.setdefault("DepthwiseConv2D", _Depthwise)
    try:
        model = keras.models.load_model(
            path, custom_objects=objects, compile=False, safe_mode=True
        )
    except Exception as error:
        raise FormatError(
            f"{path} is no model that Keras {keras.__version__} can read: "
            f"{str(error).splitlines()[0][:300]}. Own classes and functions go into "
            "custom_objects={name: class}."
        ) from error
    sequential = isinstance(model, keras.Sequential)
    given = model.input if is_functional(model) and not sequential else None
    if isinstance(given, list | tuple) and len(given) == 1:
        # Keras 2 wrote a list of one input, which warns at every call with an array.
        model = keras.Model(given[0], model.output, name=model.name)
    return model
