"""What layers keep beside their variables, through the hooks that Keras gives them.

Keras saves a layer by `save_own_variables` and `save_assets` and restores it by
`load_own_variables` and `load_assets`. Layers override them where their variables are
not all of their state, or have to be worked on after loading.
"""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import keras
import numpy as np

from keras_dlopt.codecs.dtypes import NAMES, to_bits
from keras_dlopt.errors import FormatError, ModelError
from keras_dlopt.graph.walk import walk
from keras_dlopt.runtime.values import value as held

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Kept:
    """What the hooks of a model's layers gave.

    Attributes:
        stores: path of a layer -> what `save_own_variables` stored.
        assets: path of a layer -> name of a file of `save_assets` -> its bytes.
    """

    stores: dict[str, Arrays]
    assets: dict[str, Arrays]

    def difference(self, other: "Kept") -> str | None:
        """A place where the two differ, or None."""
        for mine, its in ((self.stores, other.stores), (self.assets, other.assets)):
            for path in {**mine, **its}:
                one, two = mine.get(path, {}), its.get(path, {})
                for key in {**one, **two}:
                    if (
                        key not in one
                        or key not in two
                        or not _same(one[key], two[key])
                    ):
                        return f"{key!r} of the layer {path or 'itself'!r}"
        return None


def _same(one: np.ndarray, two: np.ndarray) -> bool:
    alike = one.dtype == two.dtype and one.shape == two.shape
    return alike and np.array_equal(to_bits(one), to_bits(two))


def overrides(layer: Any, hook: str) -> bool:
    """Whether a layer's class has a hook of its own."""
    own = getattr(type(layer), hook, None)
    return own is not getattr(keras.layers.Layer, hook, None)


def must_be_kept(model: keras.Model) -> bool:
    """Whether a layer has state that only its own hooks know of."""
    return any(
        overrides(layer, "save_assets")
        or (
            overrides(layer, "save_own_variables")
            and type(layer).__module__.split(".")[0] != "keras"
        )
        for _, layer, _ in walk(model)
    )


def collect(model: keras.Model, *, every: bool) -> Kept:
    """What the hooks of the layers store.

    Args:
        model: a built model.
        every: all layers, not only those with hooks of their own.

    Raises:
        ModelError: if a layer cannot store its state, or not as arrays of numbers.
    """
    layers: dict[str, Arrays] = {}
    assets: dict[str, Arrays] = {}
    for path, layer, _ in walk(model):
        try:
            if every or overrides(layer, "save_own_variables"):
                layers[path] = _own_variables(layer)
            if overrides(layer, "save_assets"):
                assets[path] = _own_files(layer)
        except Exception as error:
            raise ModelError(
                f"The layer {path or model.name!r} cannot store its state "
                f"({type(error).__name__}: {error!s:.300}). Its save_own_variables() "
                "and save_assets() must work, and store arrays of numbers and files."
            ) from error
    return Kept(
        {path: arrays for path, arrays in layers.items() if arrays},
        {path: files for path, files in assets.items() if files},
    )


def _own_variables(layer: Any) -> Arrays:
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    return {str(key): _array(value) for key, value in store.items()}


def _array(value: Any) -> np.ndarray:
    if isinstance(value, keras.Variable):
        array = np.asarray(held(value))  # no copy of a large model, where it can be
    else:
        array = np.asarray(keras.ops.convert_to_numpy(value))
    if array.dtype.name not in NAMES:
        raise ValueError(f"an array of dtype {array.dtype}")
    return array


def _own_files(layer: Any) -> Arrays:
    with tempfile.TemporaryDirectory() as folder:
        layer.save_assets(folder)
        return {
            file.relative_to(folder).as_posix(): np.frombuffer(
                file.read_bytes(), np.uint8
            )
            for file in sorted(Path(folder).rglob("*"))
            if file.is_file()
        }


def finish(model: keras.Model) -> None:
    """Tells layers that act once their variables are loaded that they are.

    Those with a loading hook and no saving hook of their own, such as Normalization,
    which computes what it uses from its variables.
    """
    for _, layer, _ in walk(model):
        acts = overrides(layer, "load_own_variables")
        if acts and not overrides(layer, "save_own_variables") and layer.built:
            layer.load_own_variables(_own_variables(layer))


def restore(model: keras.Model, kept: Kept) -> None:
    """Gives the layers what their hooks stored.

    Raises:
        FormatError: if there is no such layer.
    """
    known = {path: layer for path, layer, _ in walk(model)}
    for path in {**kept.stores, **kept.assets}:
        if path not in known:
            raise FormatError(
                f"The file has state for a layer {path[:80]!r} that its model does "
                "not have. If it has classes of its own, pass in custom_objects the "
                "versions it was saved with."
            )
    for path, layer in known.items():
        if path in kept.stores:
            layer.load_own_variables(dict(kept.stores[path]))
        if path in kept.assets:
            _load_files(layer, kept.assets[path])


def _load_files(layer: Any, files: Mapping[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            file = Path(folder, check_file_name(name))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.tobytes())
        layer.load_assets(folder)


def check_file_name(name: str) -> str:
    """The name of a file inside a folder; refuses one that leads elsewhere.

    Raises:
        FormatError: for any other name.
    """
    parts = PurePosixPath(name).parts
    plain = name.isprintable() and not set(name) & set('\\:*?"<>|')
    if not plain or not parts or name != "/".join(parts) or {"..", "/"} & set(parts):
        raise FormatError(
            f"Refused: {name[:80]!r} is no name of a file inside a folder. Pass a "
            "file written by save_compressed."
        )
    return name
