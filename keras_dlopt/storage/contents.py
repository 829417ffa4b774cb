"""What is in a compressed file: one description, then one record per variable."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_dlopt.codecs.container import (
    HEADER,
    TENSORS,
    read_container,
    read_json,
    write_container,
    write_json,
)
from keras_dlopt.codecs.hints import Hint
from keras_dlopt.codecs.reader import REPAIR, Reader, varint
from keras_dlopt.codecs.record import Decoded
from keras_dlopt.codecs.tensor import decode_tensor, encode_tensor
from keras_dlopt.errors import FormatError
from keras_dlopt.storage.dictionary import DICTIONARY

MAX_HEADER = 2**26  # bytes of JSON text: a thousand times what large models need


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One variable in the file, and the bits it takes by kind of content."""

    path: str
    decoded: Decoded
    bits: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Contents:
    """A file, decoded.

    Attributes:
        architecture: the model in the form of `architecture.encode`.
        tensors: the variables, in the order of the model.
        architecture_bytes: size of that section, paths of the variables included.
        file_bytes: size of the file.
    """

    architecture: Any
    tensors: list[StoredTensor]
    architecture_bytes: int
    file_bytes: int


def write_contents(
    architecture: Any,
    paths: list[str],
    arrays: list[Any],
    hints: Mapping[int, Hint],
) -> bytes:
    """The file.

    Args:
        architecture: JSON-ready description.
        paths: of the variables.
        arrays: their values.
        hints: position -> how the values were made.
    """
    records = [
        encode_tensor(array, hint=hints.get(i)) for i, array in enumerate(arrays)
    ]
    header = {"model": architecture, "paths": paths}
    return write_container(
        {
            HEADER: write_json(header, dictionary=DICTIONARY),
            TENSORS: varint(len(records)) + b"".join(records),
        }
    )


def read_contents(data: bytes, *, max_bytes: int) -> Contents:
    """Decodes a file, whose arrays may take `max_bytes` together.

    Raises:
        FormatError: if it is damaged, hostile or too large.
    """
    sections = read_container(data)
    header = read_json(
        sections[HEADER],
        max_bytes=min(max_bytes, MAX_HEADER),
        dictionary=DICTIONARY,
    )
    if not isinstance(header, dict) or set(header) != {"model", "paths"}:
        raise FormatError(f"The file is damaged: its header has other keys. {REPAIR}")
    reader = Reader(sections[TENSORS], max_bytes=max_bytes)
    count, paths = reader.varint("the number of variables"), header["paths"]
    reader.account("header")
    named = isinstance(paths, list) and all(isinstance(p, str) for p in paths)
    if not named or len(paths) != count:
        raise FormatError(
            f"The file is damaged: {count} variables and not as many paths. {REPAIR}"
        )
    tensors = []
    for path in paths:
        reader.spent = {}
        decoded = decode_tensor(reader)
        tensors.append(StoredTensor(path=path, decoded=decoded, bits=reader.spent))
    if reader.left:
        raise FormatError(
            f"The file is damaged: {reader.left} bytes follow the last variable. "
            f"{REPAIR}"
        )
    return Contents(
        architecture=header["model"],
        tensors=tensors,
        architecture_bytes=len(sections[HEADER]),
        file_bytes=len(data),
    )
