"""What is in a compressed file: one description, then one record per array."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from keras_dlopt.codecs.container import (
    HEADER,
    INDEXED,
    SHORT,
    SMALL,
    TENSORS,
    check_container,
    sections_of,
    version_of,
    write_file,
)
from keras_dlopt.codecs.hints import Hint
from keras_dlopt.codecs.reader import REPAIR, Reader
from keras_dlopt.codecs.tensor import least_version
from keras_dlopt.errors import FormatError
from keras_dlopt.storage.decoding import Stored, StoredTensor, decoded
from keras_dlopt.storage.delta import (
    SAME,
    Base,
    differences,
    header_of,
    read_origin,
)
from keras_dlopt.storage.header import read_header, write_header
from keras_dlopt.storage.hooks import Arrays, Kept, check_file_name
from keras_dlopt.storage.records import (
    INDEX_FROM,
    split,
    write_records,
)
from keras_dlopt.storage.repeats import Repeats, damaged, read_repeats, repeats

DIFFERENCE = 5  # version of the format with differences to other models
FILE_GROWTH = 32  # a word of a vocabulary takes more as text than as bytes


@dataclasses.dataclass(frozen=True)
class SavedState:
    """All that is saved of a model beside its description.

    Attributes:
        paths: one for each array.
        arrays: the weights, the other variables, then what only hooks have.
        weights: how many of the arrays are weights.
        variables: how many are variables.
        kept: what the hooks of the layers gave, or None if variables are enough.
    """

    paths: list[str]
    arrays: list[np.ndarray]
    weights: int
    variables: int
    kept: Kept | None = None


@dataclasses.dataclass(frozen=True)
class Contents:
    """A file, decoded.

    Attributes:
        architecture: the model in the form of `architecture.encode`.
        tensors: the arrays, in the order of `SavedState`.
        state: what the model is given.
        architecture_bytes: size of that section, paths of the variables included.
        file_bytes: size of the file.
    """

    architecture: Any
    tensors: list[StoredTensor]
    state: SavedState
    architecture_bytes: int
    file_bytes: int


def write_contents(
    architecture: Any,
    state: SavedState,
    hint_of: Callable[[int], Hint | None],
    base: Base | None = None,
) -> bytes:
    """The file.

    Args:
        architecture: JSON-ready description.
        state: the arrays.
        hint_of: how the values at a position were made, where that is known.
        base: paths and arrays of what the file is to be the difference to.
    """
    arrays, header = list(state.arrays), {"model": architecture, "paths": state.paths}
    if state.kept is not None:
        header = header | {"variables": [state.weights, state.variables]}
        paths = list(state.paths)
        header["layers"] = _placed(state.kept.stores, arrays, paths)
        header["assets"] = _placed(state.kept.assets, arrays, paths)
        header["paths"] = paths
    same: Repeats = {}
    if base is not None:
        origin, changed = differences(header["paths"], arrays, base)
        arrays = [changed.get(i, array) for i, array in enumerate(arrays)]
        header = header | header_of(origin)
        unwritten = {i for i, (_, how) in origin.places.items() if how == SAME}
    else:
        same = repeats(arrays)
        if same:
            header = header | {"same": [[i, *of] for i, of in same.items()]}
        unwritten = set(same)
    own = [i for i in range(len(arrays)) if i not in unwritten]
    records = write_records([arrays[i] for i in own], lambda new: hint_of(own[new]))
    versions = {0 if base is None else DIFFERENCE}

    def noted() -> Iterator[bytes]:
        for record in records:
            versions.add(least_version(record))
            yield record

    return write_file(
        write_header(header),
        noted(),
        index_from=INDEX_FROM,
        version=lambda: max(versions) or None,
    )


def _placed(
    kept: dict[str, Arrays], arrays: list[np.ndarray], paths: list[str]
) -> dict[str, Any]:
    """Each kept array as its position in `arrays`, where what is new is added."""
    known = {_content(array): i for i, array in reversed(list(enumerate(arrays)))}
    out: dict[str, dict[str, int]] = {}
    for path, named in kept.items():
        out[path] = {}
        for key, array in named.items():
            place = known.setdefault(_content(array), len(arrays))
            if place == len(arrays):
                arrays.append(array)
                paths.append(f"{path}/{key}".lstrip("/"))
            out[path][key] = place
    return out


def _content(array: np.ndarray) -> tuple[Any, ...]:
    return array.dtype.name, array.shape, array.tobytes()


def read_contents(
    data: bytes, *, max_bytes: int, bounds: bool = True, base: Base | None = None
) -> Contents:
    """Decodes a file, whose arrays may take `max_bytes` together.

    Args:
        data: the file.
        max_bytes: limit for what is decoded.
        bounds: whether to compute the entropy of what is decoded.
        base: of a file that is a difference.

    Raises:
        FormatError: if it is damaged, hostile or too large.
    """
    stored = read_stored(data, max_bytes=max_bytes, base=base)
    tensors = list(decoded(stored, bounds=bounds))
    return Contents(
        architecture=stored.header["model"],
        tensors=tensors,
        state=_state(stored.header, [tensor.array for tensor in tensors], max_bytes),
        architecture_bytes=stored.architecture_bytes,
        file_bytes=len(data),
    )


def read_stored(data: bytes, *, max_bytes: int, base: Base | None = None) -> Stored:
    """Reads the header of a file and finds its arrays.

    Raises:
        FormatError: if it is damaged, hostile or too large.
    """
    check_container(data)
    sections, version = sections_of(data), version_of(data)
    return stored_in(sections, version, max_bytes=max_bytes, base=base)


def stored_in(
    sections: Mapping[int, Any],
    version: int,
    *,
    max_bytes: int,
    base: Base | None = None,
) -> Stored:
    """The same for the sections of a file of some version."""
    header = read_header(sections, max_bytes=max_bytes)
    keys, more = {"model", "paths"}, {"variables", "layers", "assets"}
    allowed = {1: [keys], 2: [keys | more]}.get(version, [keys, keys | more])
    if version > 2:
        allowed += [one | {"same"} for one in allowed]
    if version > 4:
        allowed += [keys | {"base", "from"}, keys | more | {"base", "from"}]
    if not isinstance(header, dict) or set(header) not in allowed:
        raise FormatError(f"The file is damaged: its header has other keys. {REPAIR}")
    section = sections[INDEXED] if INDEXED in sections else bytes(sections[TENSORS])
    reader = Reader(section, max_bytes=max_bytes)
    count, paths = reader.varint("the number of variables"), header["paths"]
    reader.account("header")
    named = isinstance(paths, list) and all(isinstance(p, str) for p in paths)
    written = len(sections.get(SHORT, sections.get(HEADER, b"")))
    same = read_repeats(header.get("same", []), len(paths) if named else 0)
    origin = read_origin(header, base, reader) if named else None
    stored = Stored(header, None, reader, written, same, origin)
    if not named or count != len(stored.recorded()):
        raise FormatError(
            f"The file is damaged: {count} variables and not as many paths. {REPAIR}"
        )
    records = split(section, max_bytes=max_bytes) if INDEXED in sections else None
    return dataclasses.replace(stored, records=records)


def streamed(stored: Stored) -> tuple[SavedState, Iterable[np.ndarray]]:
    """The state in a file and its arrays in turn, of which few are held at a time.

    Where hooks want arrays, or there is no index, the state has all arrays; else it has
    their heads, with shape, dtype and size.
    """
    if stored.records is None or "variables" in stored.header:
        arrays = [tensor.array for tensor in decoded(stored, bounds=False)]
        state = _state(stored.header, arrays, stored.reader.max_bytes)
        return state, state.arrays
    heads: list[Any] = []
    own = iter(stored.records)
    recorded = set(stored.recorded())
    for i in range(len(stored.header["paths"])):
        of, turned = stored.same.get(i, (None, 0))
        head = next(own) if i in recorded else None
        if of is not None:
            head = heads[of].turned() if turned else heads[of]
        based = stored.origin.of(i) if stored.origin is not None else None
        heads.append(head if based is None else based[0])
    state = SavedState(stored.header["paths"], heads, len(heads), len(heads))
    return state, (tensor.array for tensor in decoded(stored, bounds=False))


def _state(
    header: dict[str, Any], arrays: list[np.ndarray], max_bytes: int
) -> SavedState:
    if "variables" not in header:
        return SavedState(header["paths"], arrays, len(arrays), len(arrays))
    numbers = header["variables"]
    counts = isinstance(numbers, list) and len(numbers) == 2
    if not counts or not all(type(n) is int for n in numbers):
        raise damaged("numbers of weights and variables")
    weights, variables = numbers
    if not 0 <= weights <= variables <= len(arrays):
        raise damaged("numbers of weights and variables")
    kept = kept_of(header, arrays) or Kept({}, {})
    for files in kept.assets.values():
        for name, content in files.items():
            check_file_name(name)
            if content.dtype != np.uint8 or content.ndim != 1:
                raise damaged("bytes of files")
            if FILE_GROWTH * content.size > max(max_bytes, SMALL):
                raise FormatError(
                    f"Refused: the file {name!r} of a layer has {content.size} bytes, "
                    f"and reading it may take {FILE_GROWTH} times as many. If it comes "
                    "from a source you trust, pass a larger max_bytes."
                )
    return SavedState(header["paths"], arrays, weights, variables, kept)


def kept_of(header: dict[str, Any], arrays: list[np.ndarray]) -> Kept | None:
    """What a header says that the hooks of the layers gave, if anything."""
    if "layers" not in header:
        return None
    return Kept(
        _named_arrays(header["layers"], arrays), _named_arrays(header["assets"], arrays)
    )


def _named_arrays(named: Any, arrays: list[np.ndarray]) -> dict[str, Arrays]:
    if not isinstance(named, dict) or not all(
        isinstance(v, dict) for v in named.values()
    ):
        raise damaged("places of the layers' arrays")
    for keys in named.values():
        for place in keys.values():
            if type(place) is not int or not 0 <= place < len(arrays):
                raise damaged("places of the layers' arrays")
    return {
        path: {key: arrays[place] for key, place in keys.items()}
        for path, keys in named.items()
    }
