"""`save_compressed` and `load_compressed`."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_dlopt import _compat
from keras_dlopt.codecs.container import (
    MAX_BYTES,
    limit_of,
    sections_of,
    version_of,
)
from keras_dlopt.codecs.dtypes import to_bits
from keras_dlopt.codecs.hints import Hint
from keras_dlopt.errors import ConfigError, FormatError, ModelError
from keras_dlopt.files import read_limited, write_atomic
from keras_dlopt.graph.walk import custom_classes
from keras_dlopt.runtime.values import value as held
from keras_dlopt.storage import architecture, hooks, probe
from keras_dlopt.storage.alike import alike
from keras_dlopt.storage.allowed import UnknownName
from keras_dlopt.storage.contents import (
    SavedState,
    kept_of,
    read_stored,
    stored_in,
    streamed,
    write_contents,
)
from keras_dlopt.storage.decoding import Stored, decoded
from keras_dlopt.storage.delta import Base, arrays_of, check_base, variables_of
from keras_dlopt.storage.folded import folded
from keras_dlopt.storage.ledger import Ledger, TensorRow, account, row_of
from keras_dlopt.transforms import finalize
from keras_dlopt.transforms.updating import hosts


def save_compressed(
    model: keras.Model,
    path: str | Path,
    *,
    hints: Mapping[int, Hint] | None = None,
    fold: bool = False,
    base: keras.Model | str | Path | None = None,
) -> Ledger:
    """Writes a model, entropy-coded and exact to the bit, into one file.

    The file holds the architecture and all variables, BatchNorm statistics and random
    seeds included, and what layers keep by `save_own_variables` and `save_assets`
    (vocabularies); optimizer, loss and metrics are left out. Before it is put in place
    the file is decoded again, and a model made of it must store the same and predict
    the same.

    Args:
        model: any built Keras model; one with transforms in it is finalized first.
        path: of the file; an existing one is replaced only when all went well.
        hints: position in `model.weights` -> how the values were made. Codebooks and
            grids are found by themselves; for weights whose making you know better.
        fold: whether BatchNormalization is multiplied into the kernels before it, for
            inference: fewer arrays, the same outputs but for rounding. Kernels on a
            grid keep their codes. `hints` are then of what is left, so give none.
        base: a model, or its file, that this one is much like, such as the one it was
            fine-tuned from. The file holds the difference to its variables, exact to
            the bit, and is loaded with the same base only; what did not change takes
            a few bytes.

    Returns:
        Where the bytes went.

    Raises:
        ModelError: if the model is not built, has parts that no file may hold, or
            has nothing that `fold` could fold.
        ConfigError: if the path cannot be written, for hints beside `fold`, or for a
            base that is neither a model nor a file.

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
    if fold and hints:
        raise ConfigError(
            f"hints go by the places of weights, which fold=True changes. Received: "
            f"hints for {sorted(hints)[:8]}. Pass one of the two."
        )
    if fold:
        model = folded(model)
    origin = None if base is None else _base(base)
    state, data = _written(model, hints or {}, origin)
    size = sum(array.nbytes for array in state.arrays)
    # Its checksum was made a moment ago.
    stored = stored_in(
        sections_of(data),
        version_of(data),
        max_bytes=8 * size + MAX_BYTES,
        base=origin,
    )
    ledger = account(data, stored, _compared(stored, state), origin)
    write_atomic(Path(path), data)
    return ledger


def _base(given: Any, max_bytes: int | None = None) -> Base:
    """The paths and arrays of a base: of a model, or of a whole file."""
    check_base(given)
    if isinstance(given, keras.Model):
        _check_built(given)
        return arrays_of(given)
    data = read_limited(Path(given), MAX_BYTES if max_bytes is None else max_bytes)
    limit = limit_of(len(data)) if max_bytes is None else max_bytes
    tensors = list(decoded(read_stored(data, max_bytes=limit), bounds=False))
    return [tensor.path for tensor in tensors], [tensor.array for tensor in tensors]


def _written(
    model: keras.Model, hints: Mapping[int, Hint], base: Base | None
) -> tuple[SavedState, bytes]:
    """What is saved of a model, and its file."""
    tree, plain = _describe(model), _plain_state(model)
    slim = architecture.slim(tree)

    # One after the other: together they would hold the model twice.
    form, state = _form(model, (slim, tree), plain)
    return state, write_contents(form, state, hints.get, base)


def load_compressed(
    path: str | Path,
    *,
    custom_objects: Mapping[str, Any] | None = None,
    max_bytes: int | None = None,
    base: keras.Model | str | Path | None = None,
) -> keras.Model:
    """The model in a file, with the same predictions to the bit; not compiled.

    Loading is reading data: the file can name Keras' own layers and the like, classes
    that this process registered, and `custom_objects`; nothing else, and no code.

    Args:
        path: a file written by `save_compressed`.
        custom_objects: classes and functions by name.
        max_bytes: limit for the size of the file, of its decoded variables, and of
            each array needed for a moment while decoding (8 bytes an element). By
            default 1024 times the size of the file, at least 32 MiB and at most 2 GiB.
            Twice what a base has is added to that.
        base: the model, or its file, that the file was saved with as `base`.

    Raises:
        FormatError: if the file is damaged, hostile, too large, names something that
            is not allowed or not known, or is the difference to another base.
        ConfigError: if there is no such file, or for a base too many or too few.
    """
    origin = None if base is None else _base(base, max_bytes)
    data = read_limited(Path(path), MAX_BYTES if max_bytes is None else max_bytes)
    limit = limit_of(len(data)) if max_bytes is None else max_bytes
    # Of each array of the base the difference, and then the array.
    limit += 2 * sum(array.nbytes for array in origin[1]) if origin else 0
    stored = read_stored(data, max_bytes=limit, base=origin)
    state, arrays = streamed(stored)
    return _restored(stored.header["model"], state, custom_objects or {}, arrays)


def _restored(
    tree: Any,
    state: SavedState,
    custom_objects: Mapping[str, Any],
    arrays: Iterable[Any] | None = None,
) -> keras.Model:
    """The model of a description, in this state.

    Args:
        tree: the description.
        state: what the model is given.
        custom_objects: classes by name.
        arrays: those of the state, if it has but their heads.
    """
    drawn: _compat.Drawn = []
    size = sum(array.size for array in state.arrays)
    with _compat.limited_variables(size, drawn):
        model = architecture.rebuild(tree, custom_objects=custom_objects)
        try:
            replaced = _assign(model, state, state.arrays if arrays is None else arrays)
            _compat.draw(drawn, replaced=replaced)
            if state.kept is None:
                hooks.finish(model)
            else:
                hooks.restore(model, state.kept)
        except FormatError:
            raise
        except Exception as error:
            raise FormatError(
                "The state in the file cannot be given to its model "
                f"({type(error).__name__}: {error!s:.500}). If it has classes of its "
                "own, pass in custom_objects the versions it was saved with."
            ) from error
    return model


def _assign(model: keras.Model, state: SavedState, values: Iterable[Any]) -> list[Any]:
    """Gives the variables their values, by position; returns those that got one.

    Where layers order their weights otherwise than when they were saved, as those that
    Keras quantized do, the weights are left to the hooks.
    """
    variables, arrays = variables_of(model), state.arrays[: state.variables]
    values = itertools.islice(values, state.variables)
    if state.kept is not None and _kinds(variables) != _kinds(arrays):
        variables, arrays = variables[len(model.weights) :], arrays[state.weights :]
        values = itertools.islice(values, state.weights, None)
    expected, built = _kinds(arrays), _kinds(variables)
    if expected != built:
        raise FormatError(
            f"The model described in the file has other variables ({_brief(built)}) "
            f"than the file ({_brief(expected)}). If it has classes of its own, pass "
            "in custom_objects the versions it was saved with, and create all "
            "variables in __init__() or build()."
        )
    for variable, array in zip(variables, values, strict=True):
        variable.assign(array)
    return variables


def _kinds(values: list[Any]) -> list[Any]:
    return [(tuple(v.shape), keras.backend.standardize_dtype(v.dtype)) for v in values]


def _brief(variables: list[Any]) -> str:
    shown = ", ".join(f"{dtype}{list(shape)}" for shape, dtype in variables[:4])
    more = ", ..." if len(variables) > 4 else ""
    return f"{len(variables)}: {shown}{more}"


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


def _form(
    model: keras.Model, options: tuple[Any, Any], plain: SavedState
) -> tuple[Any, SavedState]:
    """The shortest description and state that give the model again.

    Trying them now tells of a file that cannot be loaded while the model still exists.

    Args:
        model: what is saved.
        options: descriptions, a shorter one and the whole.
        plain: the state without what hooks keep.
    """
    custom, problem = custom_classes(model), None
    must = hooks.must_be_kept(model)
    for kept in (True,) if must else (False, True):
        state = plain
        if kept:
            state = dataclasses.replace(plain, kept=hooks.collect(model, every=True))
        for option in options:
            try:
                # Tensors, not arrays: the two models share their memory then.
                tensors = map(held, variables_of(model))
                again = _restored(option, state, custom, tensors)
                _check_same(model, again, options[-1])
                return option, state
            except UnknownName:
                return options[-1], state  # only the caller of load_compressed can tell
            except (FormatError, ModelError) as error:
                problem = problem or error
    raise ModelError(
        f"The model {model.name!r} could not be loaded again, so nothing was written. "
        f"{problem}"
    ) from problem


def _plain_state(model: keras.Model) -> SavedState:
    paths, arrays = arrays_of(model)
    return SavedState(paths, list(arrays), len(model.weights), len(arrays))


def _check_same(model: keras.Model, loaded: keras.Model, whole: Any) -> None:
    """Compares what layers would store, and what the models predict.

    Args:
        model: what is saved.
        loaded: what was made of its description.
        whole: the description, nothing left out.
    """
    every = hooks.collect(model, every=False)
    place = every.difference(hooks.collect(loaded, every=False))
    if place is not None:
        raise ModelError(f"What its hooks store would change: {place}.")
    custom = ">" in json.dumps(whole)
    if custom or _describe(loaded) != whole or not alike(model, loaded):
        probe.check(model, loaded)


def _compared(stored: Stored, state: SavedState) -> Iterator[TensorRow]:
    """The accounts of a file's arrays, each compared with what was to be written."""
    arrays: list[np.ndarray] = []
    for i, tensor in enumerate(decoded(stored, bounds=True)):
        if i < len(state.arrays) and not _same_bits(tensor.array, state.arrays[i]):
            raise FormatError(
                f"The variable {tensor.path!r} would not survive the file, so nothing "
                "was written. Please report this with the model."
            )
        if state.kept is not None:
            arrays.append(tensor.array)
        yield row_of(tensor)
    if state.kept is not None:
        read = kept_of(stored.header, arrays)
        if read is None or state.kept.difference(read):
            raise FormatError(
                "What the layers store would not survive the file, so nothing was "
                "written. Please report this with the model."
            )


def _same_bits(one: np.ndarray, two: np.ndarray) -> bool:
    same = one.dtype == two.dtype and one.shape == two.shape
    return same and np.array_equal(to_bits(one), to_bits(np.asarray(two)))
