"""`save_compressed` and `load_compressed`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.codecs import find_grid
from keras_dlopt.codecs.container import MAX_BYTES
from keras_dlopt.codecs.hints import Grid, Hint
from keras_dlopt.errors import ConfigError, FormatError, ModelError
from keras_dlopt.files import read_limited, write_atomic
from keras_dlopt.graph.walk import custom_classes
from keras_dlopt.storage import architecture
from keras_dlopt.storage.allowed import UnknownName
from keras_dlopt.storage.contents import Contents, read_contents, write_contents
from keras_dlopt.storage.ledger import Ledger, account
from keras_dlopt.transforms import finalize
from keras_dlopt.transforms.updating import hosts


def save_compressed(
    model: keras.Model, path: str | Path, *, hints: Mapping[int, Hint] | None = None
) -> Ledger:
    """Writes a model, entropy-coded and exact to the bit, into one file.

    The file holds the architecture and all variables, BatchNorm statistics and random
    seeds included; optimizer, loss and metrics are left out. Before it is put in
    place the file is decoded again and compared with the model.

    Args:
        model: any built Keras model; one with transforms in it is finalized first.
        path: of the file; an existing one is replaced only when all went well.
        hints: position in `model.weights` -> how the values were made. Codebooks and
            grids are found by themselves; for weights whose making you know better.

    Returns:
        Where the bytes went.

    Raises:
        ModelError: if the model is not built, or has parts that no file may hold.
        ConfigError: if the path cannot be written.

    Example:
        >>> import keras, tempfile, os
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.dlopt")
        ...     ledger = save_compressed(model, path)
        ...     os.path.getsize(path) == ledger.file_bytes
        True
    """
    _check_built(model)
    if hosts(model):
        model = finalize(model)
    variables = _variables(model)
    arrays = [keras.ops.convert_to_numpy(v.value) for v in variables]
    found = {i: find_grid(array) for i, array in enumerate(arrays)}
    grids = {i: grid for i, grid in found.items() if grid is not None}
    given = dict(hints or {})
    # Codebooks are seen from the values anyway; a grid given goes before one found.
    known = given | grids | {i: h for i, h in given.items() if isinstance(h, Grid)}
    tree = _loadable(_describe(model), model, arrays)
    data = write_contents(tree, [v.path for v in variables], arrays, known)
    size = sum(array.nbytes for array in arrays)
    contents = read_contents(data, max_bytes=8 * size + MAX_BYTES)
    _compare(contents, arrays)
    write_atomic(Path(path), data)
    return account(contents)


def load_compressed(
    path: str | Path,
    *,
    custom_objects: Mapping[str, Any] | None = None,
    max_bytes: int = MAX_BYTES,
) -> keras.Model:
    """The model in a file, with the same predictions to the bit; not compiled.

    Loading is reading data: the file can name Keras' own layers and the like, classes
    that this process registered, and `custom_objects`; nothing else, and no code.

    Args:
        path: a file written by `save_compressed`.
        custom_objects: classes and functions by name.
        max_bytes: limit for the size of the file, of its decoded variables, and of
            each array needed for a moment while decoding (8 bytes an element).

    Raises:
        FormatError: if the file is damaged, hostile, too large, or names something
            that is not allowed or not known.
        ConfigError: if there is no such file.
    """
    data = read_limited(Path(path), max_bytes)
    contents = read_contents(data, max_bytes=max_bytes)
    arrays = [tensor.decoded.array for tensor in contents.tensors]
    model = _rebuild(contents.architecture, arrays, custom_objects or {})
    for variable, array in zip(_variables(model), arrays, strict=True):
        variable.assign(array)
    return model


def _rebuild(tree: Any, arrays: list, custom_objects: Mapping[str, Any]) -> keras.Model:
    """The model of a description, checked to have variables for these arrays."""
    with _compat.limited_variables(sum(array.size for array in arrays)):
        model = architecture.rebuild(tree, custom_objects=custom_objects)
    expected = [(tuple(a.shape), a.dtype.name) for a in arrays]
    built = [
        (tuple(v.shape), keras.backend.standardize_dtype(v.dtype))
        for v in _variables(model)
    ]
    if expected != built:
        raise FormatError(
            f"The model described in the file has other variables ({_brief(built)}) "
            f"than the file ({_brief(expected)}). If it has classes of its own, pass "
            "in custom_objects the versions it was saved with, and create all "
            "variables in __init__() or build()."
        )
    return model


def _brief(variables: list) -> str:
    shown = ", ".join(f"{dtype}{list(shape)}" for shape, dtype in variables[:4])
    more = ", ..." if len(variables) > 4 else ""
    return f"{len(variables)}: {shown}{more}"


def _variables(model: keras.Model) -> list:
    """The weights, then the random seeds; no metrics."""
    skip = {id(v) for v in [*model.weights, *model.metrics_variables]}
    return [*model.weights, *(v for v in model.variables if id(v) not in skip)]


def _check_built(model: keras.Model) -> None:
    if not isinstance(model, keras.Model):
        raise ConfigError(
            f"save_compressed expects a keras.Model. Received: {type(model).__name__}. "
            "Wrap a layer as keras.Sequential([keras.Input(shape), layer])."
        )
    if not model.built:
        raise ModelError(
            f"The model {model.name!r} is not built, so it has no weights to save. "
            "Call it on a batch, or model.build(input_shape), first."
        )


def _describe(model: keras.Model) -> Any:
    try:
        tree = architecture.encode(keras.saving.serialize_keras_object(model))
        return json.loads(json.dumps(tree))
    except Exception as error:
        raise ModelError(
            f"The model {model.name!r} cannot be described as data ({error}). Give its "
            "classes get_config(), and write functions as layers."
        ) from error


def _loadable(tree: Any, model: keras.Model, arrays: list) -> Any:
    """The shortest description that gives the model again.

    Trying it now tells of a file that cannot be loaded while the model still exists.
    """
    for option in (architecture.slim(tree), tree):
        try:
            _rebuild(option, arrays, custom_classes(model))
            return option
        except UnknownName:
            return tree  # only the caller of load_compressed can tell
        except FormatError as error:
            problem = error
    raise ModelError(
        f"The model {model.name!r} could not be loaded again, so nothing was written. "
        f"{problem}"
    ) from problem


def _compare(contents: Contents, arrays: list) -> None:
    for tensor, array in zip(contents.tensors, arrays, strict=True):
        if tensor.decoded.array.tobytes() != array.tobytes():
            raise FormatError(
                f"The variable {tensor.path!r} would not survive the file, so nothing "
                "was written. Please report this with the model."
            )
