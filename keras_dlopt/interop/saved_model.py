"""SavedModels of Keras 2, read as data: the model's config, and each layer's arrays.

Metadata is JSON, in `keras_metadata.pb` or, up to TensorFlow 2.4, in `saved_model.pb`;
variables come through TensorFlow's checkpoint reader. No function in them is run.
"""

import dataclasses
import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from keras_dlopt.errors import FormatError
from keras_dlopt.files import parse_json

MAX_BYTES = 2**31
_VALUE = "VARIABLE_VALUE"
# Attributes that hold what is reached by a shorter way, too.
_LISTS = ("variables", "trainable_variables", "keras_api", "regularization_losses")


@dataclasses.dataclass(frozen=True)
class SavedLayers:
    """A model of Keras 2, as its folder describes it.

    Attributes:
        config: class name and config of the model, as Keras 2 wrote them.
        weights: name of a layer -> its arrays, in the layer's order.
    """

    config: dict[str, Any]
    weights: dict[str, list[np.ndarray]]


def read(folder: Path) -> SavedLayers:
    """Reads a SavedModel folder of Keras 2.

    Raises:
        FormatError: for a folder that is none, or whose parts do not fit together.
    """
    try:
        return _read(folder)
    except FormatError:
        raise
    except Exception as error:  # protobuf and TensorFlow raise a dozen kinds
        raise _unreadable(folder, f"{type(error).__name__}: {error}") from error


def write_h5(saved: SavedLayers, path: Path) -> None:
    """Writes what was read as a file in Keras 2's HDF5 format.

    Args:
        saved: the model.
        path: of the file.
    """
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(saved.config).encode()
        root = file.create_group("model_weights")
        # As text of any length: an attribute holds 64 kB of what has one length.
        text = h5py.string_dtype()
        root.attrs["layer_names"] = np.array(list(saved.weights), text)
        root.attrs["keras_version"], root.attrs["backend"] = b"2.15.0", b"tensorflow"
        for name, arrays in saved.weights.items():
            group = root.create_group(name)
            names = [str(n) for n in range(len(arrays))]
            group.attrs["weight_names"] = np.array(names, text)
            for number, array in enumerate(arrays):
                group[str(number)] = array


def _unreadable(folder: Path, reason: str) -> FormatError:
    return FormatError(
        f"{folder} is no SavedModel with the layers of a Sequential or Functional "
        f"model of Keras 2 ({reason[:300]}). Without its layers a program cannot be "
        "pruned or quantized: give the .keras or .h5 file, or write one where the "
        "model was made: model.save('model.h5')."
    )


def _read(folder: Path) -> SavedLayers:
    nodes = _nodes(folder)
    metadata = _metadata(folder, nodes)
    root = metadata.get(0, {})
    kind = root.get("class_name")
    if kind not in ("Sequential", "Functional", "Model") or not root.get("config"):
        raise _unreadable(folder, f"its root is {kind!r}")
    variables = _Variables(folder, nodes)
    weights: dict[str, list[np.ndarray]] = {}
    for place in _layers_of(nodes):
        name = metadata[place]["name"]
        if name in weights:
            raise _unreadable(folder, f"two layers have the name {name!r}")
        weights[name] = variables.of(place)
    return SavedLayers({"class_name": kind, "config": root["config"]}, weights)


def _nodes(folder: Path) -> list[Any]:
    from tensorflow.core.protobuf import saved_model_pb2

    file = folder / "saved_model.pb"
    if not file.is_file():
        raise _unreadable(folder, "there is no saved_model.pb in it")
    graphs = saved_model_pb2.SavedModel.FromString(file.read_bytes()).meta_graphs
    found = list(graphs[0].object_graph_def.nodes) if graphs else []
    if not found:
        raise _unreadable(folder, "it is of TensorFlow 1")
    return found


def _metadata(folder: Path, nodes: list[Any]) -> dict[int, dict[str, Any]]:
    """What Keras 2 noted of each node: number of the node -> JSON."""
    from keras_dlopt.interop.tfmot.files import metadata_nodes

    beside = folder / "keras_metadata.pb"
    if beside.is_file():
        return {n: meta for n, _, meta in metadata_nodes(beside.read_bytes())}
    texts = {n: one.user_object.metadata for n, one in enumerate(nodes)}
    return {
        n: parse_json(text, finite=False)
        for n, text in texts.items()
        if text.startswith("{")
    }


def _children(node: Any) -> dict[str, int]:
    return {child.local_name: child.node_id for child in node.children}


def _layers_of(nodes: list[Any]) -> list[int]:
    """The numbers of the model's layers, in their order."""
    found = {
        int(name.removeprefix("layer-")): number
        for name, number in _children(nodes[0]).items()
        if name.startswith("layer-") and name.removeprefix("layer-").isdecimal()
    }
    return [found[n] for n in sorted(found)]


class _Variables:
    """The arrays of a SavedModel's variables."""

    def __init__(self, folder: Path, nodes: list[Any]):
        import tensorflow as tf
        from tensorflow.core.protobuf import trackable_object_graph_pb2 as graphs

        self.folder, self.nodes = folder, nodes
        self.reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
        text = self.reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
        self.stored = graphs.TrackableObjectGraph.FromString(text).nodes
        self.shapes = self.reader.get_variable_to_shape_map()
        self.keys = self._keys()
        self.total = 0

    def _keys(self) -> dict[int, str]:
        """Number of a variable's node -> its key: both graphs walked by names."""
        keys: dict[int, str] = {}
        seen, waiting = {0}, deque([(0, 0)])
        while waiting:
            ours, theirs = waiting.popleft()
            for attribute in self.stored[theirs].attributes:
                if attribute.name == _VALUE:
                    keys[ours] = attribute.checkpoint_key
            below = _children(self.stored[theirs])
            for name, number in _children(self.nodes[ours]).items():
                if name in below and name not in _LISTS and number not in seen:
                    seen.add(number)
                    waiting.append((number, below[name]))
        return keys

    def of(self, layer: int) -> list[np.ndarray]:
        """The arrays of a layer, trainable ones first, as Keras 2 orders them."""
        listed = _children(self.nodes[layer]).get("variables")
        numbers = _children(self.nodes[listed]) if listed is not None else {}
        order = sorted((n for n in numbers if n.isdecimal()), key=int)
        return [self._array(numbers[n]) for n in order]

    def _array(self, number: int) -> np.ndarray:
        variable = self.nodes[number].variable
        key = self.keys.get(number)
        if key not in self.shapes:
            raise _unreadable(
                self.folder, f"the variable {variable.name!r} is not stored in it"
            )
        self.total += 8 * int(np.prod(self.shapes[key], dtype=float))
        if self.total > MAX_BYTES:
            raise _unreadable(
                self.folder, f"its arrays have more than {MAX_BYTES} bytes"
            )
        return np.asarray(self.reader.get_tensor(key))
