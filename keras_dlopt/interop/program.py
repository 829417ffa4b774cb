"""What a SavedModel's own program computes, if it does nothing but compute."""

import re
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_dlopt import _compat
from keras_dlopt.errors import FormatError

_SIGNATURE = "serving_default"
# Beside operations without a state: what reads variables and calls functions.
_HARMLESS = frozenset(["Placeholder", "ReadVariableOp", "StatefulPartitionedCall"])
# Without a state by TensorFlow's book, and still no arithmetic.
_SUSPECT = re.compile(
    "Dataset|Debug|File|Iterator|Load|Lookup|PyFunc|Reader|Restore|Rpc"
)
# Rounding of other kernels and another order of sums, of the largest output.
_TOLERANCE = 1e-3


def check_outputs(model: Any, folder: Path) -> str | None:
    """Compares a model with the program of the SavedModel that it was read from.

    The program is run only if all it can reach are operations without a state, and
    variables that it reads: none that touches files or calls Python, by its name.

    Args:
        model: what was read.
        folder: of the SavedModel.

    Returns:
        None if the outputs agree, else why they were not compared.

    Raises:
        FormatError: if they differ.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString(
        (folder / "saved_model.pb").read_bytes()
    )
    graph = saved.meta_graphs[0]
    if _SIGNATURE not in graph.signature_def:
        return f"it has no signature {_SIGNATURE!r}"
    if others := sorted(_reached(graph) - _HARMLESS):
        return f"it holds operations that do more than compute: {others}"
    try:
        program = _loaded(saved, folder).signatures[_SIGNATURE]
    except Exception as error:  # of TensorFlow's own reader; the model is read already
        return f"TensorFlow does not load it ({type(error).__name__}: {error})"
    given = _examples(model)
    names = program.structured_input_signature[1]
    if not all(tensor.name in names for tensor in model.inputs):
        return f"its inputs have other names than the model's: {sorted(names)}"
    pairs = zip(model.inputs, given, strict=True)
    named = {t.name: tf.constant(x, names[t.name].dtype) for t, x in pairs}
    theirs = [y.numpy() for y in program(**named).values()]
    ours = keras.tree.flatten(model(given if len(given) > 1 else given[0]))
    ours = [np.asarray(keras.ops.convert_to_numpy(y)) for y in ours]
    off = _difference(ours, theirs)
    if off > _TOLERANCE:
        raise FormatError(
            f"{folder} was read, but its program computes other outputs: off by "
            f"{off:.3g} of the largest. Compare them by hand after "
            "load(path, compare=False)."
        )
    return None


def _loaded(saved: Any, folder: Path) -> Any:
    """The program, without the slots of an optimizer, which need tf_keras."""
    import tensorflow as tf

    for node in saved.meta_graphs[0].object_graph_def.nodes:
        del node.slot_variables[:]
    with tempfile.TemporaryDirectory() as place:
        for one in folder.iterdir():
            if one.name != "saved_model.pb":
                Path(place, one.name).symlink_to(one.resolve())
        Path(place, "saved_model.pb").write_bytes(saved.SerializeToString())
        return tf.saved_model.load(place)


def _difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest difference, each output taken with the one that is nearest."""
    found = 0.0
    for one in ours:
        top = max(float(np.abs(one).max(initial=0)), 1e-6)
        offs = [float(np.abs(one - t).max()) for t in theirs if t.shape == one.shape]
        found = max(found, min(offs, default=np.inf) / top)
    return found


def _examples(model: Any) -> list[np.ndarray]:
    rng, made = np.random.default_rng(0), []
    for tensor in model.inputs:
        shape = [2, *(8 if n is None else n for n in tensor.shape[1:])]
        whole = not keras.backend.is_float_dtype(tensor.dtype)
        values = np.zeros(shape) if whole else rng.normal(size=shape)
        made.append(values.astype(tensor.dtype))
    return made


def _reached(graph: Any) -> set[str]:
    """Operations with a state, of all that loading and calling the program runs.

    Loading restores the variables, and makes resources by functions of the file.
    """
    library = {f.signature.name: f.node_def for f in graph.graph_def.library.function}
    waiting, seen, found = _called(graph), set[str](), set[str]()
    if any(n.WhichOneof("kind") == "resource" for n in graph.object_graph_def.nodes):
        found.add("a resource")
    while waiting:
        name = waiting.pop()
        if name in library:
            if name not in seen:
                seen.add(name)
                for node in library[name]:
                    waiting += [node.op, *_functions(node)]
            continue
        if _compat.has_state(name) is not False or _SUSPECT.search(name):
            found.add(name)
    return found


def _called(graph: Any) -> list[str]:
    """The function behind the signature, as loading finds it."""
    nodes = graph.object_graph_def.nodes
    number = 0
    for name in ("signatures", _SIGNATURE):
        number = {c.local_name: c.node_id for c in nodes[number].children}[name]
    node = nodes[number]
    plain = node.bare_concrete_function.concrete_function_name
    return [plain] if plain else list(node.function.concrete_functions)


def _functions(node: Any) -> list[str]:
    found = [a.func.name for a in node.attr.values() if a.HasField("func")]
    return found + [f.name for a in node.attr.values() for f in a.list.func]
