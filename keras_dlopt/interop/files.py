"""Files of Keras 2 and Keras 3."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import keras
from absl import logging

from keras_dlopt.errors import FormatError
from keras_dlopt.files import parse_json
from keras_dlopt.graph.walk import is_functional
from keras_dlopt.interop.legacy_config import for_keras_3
from keras_dlopt.interop.program import check_outputs
from keras_dlopt.interop.saved_model import read, write_h5


class _Depthwise(keras.layers.DepthwiseConv2D):
    """What Keras 2 wrote: with `groups`, which Keras 3 does not know."""

    @classmethod
    def from_config(cls, config):
        config = {name: v for name, v in config.items() if name != "groups"}
        return keras.layers.DepthwiseConv2D.from_config(config)


def load(
    path: str | os.PathLike[str],
    *,
    custom_objects: Mapping[str, Any] | None = None,
    compare: bool = True,
    compile: bool = False,
    safe_mode: bool = True,
) -> keras.Model:
    """The model in a file of Keras 2 (`.h5`, SavedModel) or Keras 3 (`.keras`, `.h5`).

    Like `keras.models.load_model`, and it also reads what Keras 2 wrote of depthwise
    convolutions, and the layers and weights in a SavedModel folder; tf_keras is not
    needed.

    Args:
        path: of the file or folder.
        custom_objects: name -> class or function, of those that are not Keras' own.
        compare: whether the outputs are compared with those of a SavedModel's own
            program, which is run only if it does nothing but compute.
        compile: whether the model is compiled as it was, if the file says how and all
            that it names is known; never from a SavedModel.
        safe_mode: whether Python code in the file, as of a `Lambda`, is refused. Code
            can do anything: pass False for files that you trust alone.

    Raises:
        FileNotFoundError: if there is none.
        FormatError: for a file that Keras 3 cannot read, with its reason, and for a
            SavedModel whose program computes something else.

    Warns:
        UserWarning: if a SavedModel's program was not run, with the reason.

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
        return _from_folder(path, custom_objects, compare, safe_mode)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {os.fspath(path)!r}.")
    given: dict[str, Any] = {"custom_objects": custom_objects, "safe_mode": safe_mode}
    if compile:
        # Without what only training needs, such as a loss of the user's own.
        with contextlib.suppress(FormatError):
            return _from_file(path, path, compile=True, **given)
    return _from_file(path, path, **given)


@contextlib.contextmanager
def _counted_from_0(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The file; a copy of it with another config, if Keras 2 wrote nested models."""
    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config", "null")
        text = text.decode() if isinstance(text, bytes) else text
        root = file.get("model_weights", file)
        version = root.attrs.get("keras_version", file.attrs.get("keras_version", "2"))
        version = version.decode() if isinstance(version, bytes) else str(version)
    given = parse_json(text, finite=False)
    made = given
    if isinstance(given, dict) and not version.startswith("3"):
        made = for_keras_3(given)
    if made == given:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / path.name
        shutil.copyfile(path, copy)
        with h5py.File(copy, "r+") as file:
            file.attrs["model_config"] = json.dumps(made)
        yield copy


def _from_folder(
    path: pathlib.Path, objects: Any, compare: bool, safe_mode: bool
) -> keras.Model:
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.h5"
        write_h5(read(path), file)
        model = _from_file(file, path, custom_objects=objects, safe_mode=safe_mode)
    reason = check_outputs(model, path) if compare else None
    if reason is not None:
        warnings.warn(
            f"The outputs of {path} were not compared with its own program, which was "
            f"not run: {reason}. Compare them by hand, or pass compare=False.",
            stacklevel=3,
        )
    return model


def _from_file(
    path: pathlib.Path,
    shown: pathlib.Path,
    *,
    custom_objects: Mapping[str, Any] | None,
    safe_mode: bool,
    compile: bool = False,
) -> keras.Model:
    objects = dict(custom_objects or {})
    hdf5 = path.suffix in (".h5", ".hdf5")
    if hdf5:
        objects.setdefault("DepthwiseConv2D", _Depthwise)
    try:
        with (
            _counted_from_0(path) if hdf5 else contextlib.nullcontext(path) as file,
            _silent(),
        ):
            model = keras.models.load_model(
                file, custom_objects=objects, compile=compile, safe_mode=safe_mode
            )
    except Exception as error:
        raise FormatError(
            f"{shown} is no model that Keras {keras.__version__} can read: "
            f"{(str(error) or repr(error)).splitlines()[0][:300].rstrip('.')}. "
            f"{_advice(path)}"
        ) from error
    sequential = isinstance(model, keras.Sequential)
    taken = model.input if is_functional(model) and not sequential else None
    if isinstance(taken, list | tuple) and len(taken) == 1:
        # Keras 2 wrote a list of one input, which warns at every call with an array.
        model = keras.Model(taken[0], model.output, name=model.name)
    return model


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keras warns of compiled models in `.h5` files, and of new optimizers in all."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Skipping variable loading for optim")
            yield
    finally:
        logging.set_verbosity(before)


def _advice(path: pathlib.Path) -> str:
    if path.name.endswith(".weights.h5"):
        return (
            "It holds weights alone: build the model, call model.load_weights(path), "
            "and save the whole with model.save('model.keras')."
        )
    return "Own classes and functions go into custom_objects={name: class}."
