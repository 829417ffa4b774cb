"""Files of tf_keras, read as data: the model's config, and its arrays by layer.

Nothing in them is run: HDF5 through h5py, the metadata of a `SavedModel` as JSON, its
variables through TensorFlow's checkpoint reader. The graph in it is ignored.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_dlopt.errors import ConfigError, FormatError
from keras_dlopt.files import parse_json

MAX_BYTES = 2**31
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


@dataclasses.dataclass(frozen=True)
class LegacyModel:
    """A model of tf_keras, as its file describes it.

    Attributes:
        kind: `"Sequential"` or `"Functional"`.
        config: of the model, as tf_keras wrote it.
        arrays: layer name -> variable name -> value; a wrapper's own variables and
            those of the layer inside it together.
    """

    kind: str
    config: dict[str, Any]
    arrays: dict[str, dict[str, np.ndarray]]


def read(path: Path) -> LegacyModel:
    """Reads an `.h5` file or a `SavedModel` folder.

    Raises:
        ConfigError: if there is no such file.
        FormatError: if it is not a tf_keras model that describes itself.
    """
    if not path.exists():
        raise ConfigError(
            f"There is no file or folder {str(path)!r}. Give a tf_keras model's .h5 "
            "file or SavedModel folder."
        )
    try:
        found = _saved_model(path) if path.is_dir() else _hdf5(path)
    except FormatError:
        raise
    except Exception as error:  # h5py, protobuf and TensorFlow raise a dozen kinds
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if found.kind not in ("Sequential", "Functional", "Model"):
        raise _unreadable(path, f"it holds a {found.kind!r}")
    return found


def _unreadable(path: Path, reason: str) -> FormatError:
    return FormatError(
        f"{str(path)!r} is not a Sequential or Functional model of tf_keras with its "
        f"config ({reason}). Save it again with model.save('model.h5')."
    )


def _check_size(total: int, path: Path) -> None:
    if total > MAX_BYTES:
        raise FormatError(
            f"{str(path)!r} describes arrays of {total} bytes, more than the "
            f"{MAX_BYTES} that are read. Strip the model to its weights first."
        )


def _hdf5(path: Path) -> LegacyModel:
    import h5py

    with h5py.File(path, "r") as file:
        text = file.attrs["model_config"]
        model = parse_json(text, finite=False)
        root = file["model_weights"]
        names = [_text(n) for n in root.attrs["layer_names"]]
        arrays: dict[str, dict[str, np.ndarray]] = {}
        total = 0
        for name in names:
            group, own = root[name], {}
            for full in map(_text, group.attrs["weight_names"]):
                # Links to other files are not followed.
                if not isinstance(group.get(full, getlink=True), h5py.HardLink):
                    raise _unreadable(path, f"{full!r} is not stored in it")
                total += group[full].nbytes
                _check_size(total, path)
                own[full] = np.asarray(group[full])
            arrays[name] = _short(own)
    return LegacyModel(model["class_name"], model["config"], arrays)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _short(own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without their scopes, where that tells them apart."""
    short = {full: full.rsplit("/", 1)[-1].removesuffix(":0") for full in own}
    if len(set(short.values())) < len(own):
        return dict(own)
    return {short[full]: value for full, value in own.items()}


def _saved_model(folder: Path) -> LegacyModel:
    import tensorflow as tf

    nodes = list(metadata_nodes((folder / "keras_metadata.pb").read_bytes()))
    root = next(meta for _, path, meta in nodes if path == "root")
    names = {
        path.removeprefix("root."): meta["name"]
        for _, path, meta in nodes
        if path.count(".") == 1 and "name" in meta
    }
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    shapes = reader.get_variable_to_shape_map()
    _check_size(sum(4 * int(np.prod(s, dtype=float)) for s in shapes.values()), folder)
    found: dict[str, dict[str, np.ndarray]] = {}
    for key in sorted(shapes):
        place, _, rest = key.removesuffix(_VALUE).partition("/")
        if key.endswith(_VALUE) and place in names and rest:
            found.setdefault(names[place], {})[rest] = reader.get_tensor(key)
    arrays = {name: _short(own) for name, own in found.items()}
    return LegacyModel(root["class_name"], root["config"], arrays)


def metadata_nodes(data: bytes) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(number, path, metadata) of each node in `keras_metadata.pb`.

    Only these fields are read, under their numbers in tf_keras' `saved_metadata.proto`.

    Args:
        data: the file's bytes.

    Raises:
        ValueError: for bytes that are no such file.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from google.protobuf.message import DecodeError

    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="metadata.proto", package="dlopt")
    node = file.message_type.add(name="Node")
    fields = (("number", 2), ("path", 3), ("metadata", 5))
    for name, number in fields:
        what = kind.TYPE_INT32 if name == "number" else kind.TYPE_STRING
        node.field.add(name=name, number=number, type=what, label=kind.LABEL_OPTIONAL)
    file.message_type.add(name="Nodes").field.add(
        name="nodes",
        number=1,
        type=kind.TYPE_MESSAGE,
        type_name=".dlopt.Node",
        label=kind.LABEL_REPEATED,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    nodes = message_factory.GetMessageClass(pool.FindMessageTypeByName("dlopt.Nodes"))
    try:
        found = nodes.FromString(data).nodes
    except DecodeError as error:
        raise ValueError(f"keras_metadata.pb is damaged: {error}") from error
    for one in found:
        if one.metadata:
            yield one.number, one.path, parse_json(one.metadata, finite=False)
