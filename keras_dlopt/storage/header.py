"""The header of a file: the description of the model and the names of its arrays."""

from collections.abc import Mapping
from typing import Any

from keras_dlopt.codecs.container import HEADER, SHORT, read_json, write_json
from keras_dlopt.storage.dictionary import DICTIONARY, SHORT_DICTIONARY
from keras_dlopt.storage.short import MOST_BYTES, lengthen, shorten

MAX_HEADER = 2**26  # bytes of JSON text: a thousand times what large models need


def write_header(header: dict[str, Any]) -> dict[int, bytes]:
    """The header, in the short form where that takes fewer bytes."""
    full, short = write_json(header, dictionary=DICTIONARY), shorten(header)
    if short is not None:
        text = write_json(short, dictionary=SHORT_DICTIONARY)
        if len(text) < len(full):
            return {SHORT: text}
    return {HEADER: full}


def read_header(sections: Mapping[int, Any], *, max_bytes: int) -> Any:
    """The header of a file in full, whatever its form.

    Raises:
        FormatError: if it is damaged or too large.
    """
    if SHORT not in sections:
        most = min(max_bytes, MAX_HEADER)
        return read_json(bytes(sections[HEADER]), max_bytes=most, dictionary=DICTIONARY)
    text = read_json(
        bytes(sections[SHORT]),
        max_bytes=min(max_bytes, MOST_BYTES),
        dictionary=SHORT_DICTIONARY,
        mark=b'"~"',
    )
    return lengthen(text)
