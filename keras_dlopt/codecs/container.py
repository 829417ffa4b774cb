"""The container: magic bytes, version, sections, checksum (docs/format.md)."""

import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from keras_dlopt.codecs.deflate import read_deflated, write_deflated
from keras_dlopt.codecs.reader import REPAIR, Reader, varint
from keras_dlopt.errors import FormatError

MAGIC = b"\x89DLO"
VERSION, LATEST = 1, 6  # what is read
HEADER, TENSORS, INDEXED, SHORT = 1, 2, 3, 4  # section types
CHECKSUM_BYTES = 8
MAX_BYTES = 2**31
SMALL = 2**25  # bytes that any file may take without being asked
GROWTH = 1024  # times its own size that a file may take without being asked
ROOM = 2**14  # bytes for the sizes of records, before them
NODE_BYTES = 256  # of memory that a value of the header may take, copies included
NODE_VALUES = 128  # that a node of a short header may stand for


def limit_of(size: int) -> int:
    """What the contents of a file of `size` bytes may take if the caller is silent.

    Zeros and constants take no bytes, so a file of a hundred bytes could ask for all
    memory; weights that were trained take more than 1/1024 of their size.
    """
    return min(MAX_BYTES, max(SMALL, GROWTH * size))


def checksum(*parts: bytes | memoryview) -> bytes:
    """BLAKE2b with an 8-byte digest, of the parts one after another.

    It finds accidents (a CRC32 lets one damaged file in 4 billion pass; this one in
    1.8e19). It is no signature: whoever alters a file on purpose can compute it anew,
    so every reader checks all it reads as well.
    """
    digest = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()


def write_container(
    sections: Mapping[int, bytes], *, version: int | None = None
) -> bytes:
    """The file with these sections: the header, then the variables.

    Without a version it is the oldest that has such sections.
    """
    parts = [_start(sections, version)]
    for kind in sorted(sections, key=lambda kind: (kind != SHORT, kind)):
        parts += [bytes([kind]), varint(len(sections[kind])), sections[kind]]
    return b"".join([*parts, checksum(*parts)])


def _start(sections: Collection[int], version: int | None) -> bytes:
    return MAGIC + bytes([version or (4 if SHORT in sections else 3)])


def write_file(
    header: Mapping[int, bytes],
    records: Iterable[bytes],
    *,
    index_from: int,
    version: Callable[[], int | None] = lambda: None,
) -> bytes:
    """The file with a header and records, which are held once only.

    Args:
        header: its section.
        records: each is let go when it has been taken.
        index_from: bytes of records from which on their sizes stand before them.
        version: of the format, asked for when all records have been taken; None for
            the oldest that has such sections.
    """
    # What stands before the records is known after them, so room is left for it.
    ((kind, text),) = header.items()
    room = len(text) + ROOM
    file, sizes = io.BytesIO(), []
    file.write(bytes(room))
    for record in records:
        sizes.append(len(record))
        file.write(record)
    count, total = varint(len(sizes)), sum(sizes)
    index = b"".join(map(varint, sizes)) if total >= index_from else b""
    size = varint(len(count) + len(index) + total)
    head = _start(header, version()) + bytes([kind]) + varint(len(text)) + text
    head += bytes([INDEXED if index else TENSORS]) + size + count + index
    with file.getbuffer() as view:
        body = view[room:]
        if len(head) <= room:
            view[len(head) : len(head) + total] = body  # to the left, in place
            view[: len(head)] = head
        else:  # very many records
            head += bytes(body)
        body.release()
    if len(head) > room:
        return head + checksum(head)
    file.truncate(len(head) + total)
    digest = checksum(file.getbuffer())
    file.seek(len(head) + total)
    file.write(digest)
    return file.getvalue()


def read_container(data: bytes) -> dict[int, bytes]:
    """The sections of a file; both kinds are present.

    Raises:
        FormatError: if the file is damaged, truncated, not of this format, or of a
            version this package does not know.
    """
    check_container(data)
    return {kind: bytes(some) for kind, some in sections_of(data).items()}


def check_container(data: bytes) -> None:
    """Refuses what is no whole file of a known version; see `read_container`."""
    check_start(data)
    body, found = memoryview(data)[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if checksum(body) != found:
        raise broken(len(data))


def check_start(data: Any) -> None:
    """Refuses what is no file of a version that is known; see `read_container`.

    Args:
        data: bytes, or what gives the like of bytes for a slice.
    """
    start = bytes(data[: len(MAGIC)])
    if start != MAGIC:
        raise FormatError(
            f"Not a keras-dlopt file: it begins with {start!r} instead of "
            f"{MAGIC!r}. Pass a file written by save_compressed."
        )
    if len(data) < len(MAGIC) + 1 + CHECKSUM_BYTES:
        raise FormatError(f"The file is cut short after {len(data)} bytes. {REPAIR}")
    if not VERSION <= version_of(data) <= LATEST:
        raise FormatError(
            f"The file has format version {version_of(data)}; this package reads "
            f"versions {VERSION} to {LATEST}. Update keras-dlopt, or: {REPAIR}"
        )


def broken(size: int) -> FormatError:
    """The error for a file of `size` bytes whose checksum is another one."""
    return FormatError(
        "The file is damaged or truncated: its checksum does not fit its "
        f"{size} bytes. {REPAIR}"
    )


def version_of(data: Any) -> int:
    """The format version that a file says it has."""
    return bytes(data[len(MAGIC) : len(MAGIC) + 1])[0]


def sections_of(data: Any) -> dict[int, Any]:
    """The sections as slices of a file, whose checksum is not looked at.

    Raises:
        FormatError: if they are not the two that belong there.
    """
    if isinstance(data, bytes):
        data = memoryview(data)
    version, end = version_of(data), len(data) - CHECKSUM_BYTES
    reader = Reader(data[:end], max_bytes=end)
    first = (HEADER,) if version < 4 else (HEADER, SHORT)
    second = (TENSORS,) if version < 3 else (TENSORS, INDEXED)
    reader.take(len(MAGIC) + 1, "the start of the file")
    sections: dict[int, Any] = {}
    while reader.left:
        kind = reader.take(1, "a section type")[0]
        expected = (first, second, ())[len(sections)]
        if kind not in expected:
            raise FormatError(
                f"The file has an unknown or repeated section of type {kind}, or it is "
                f"out of order. Update keras-dlopt, or: {REPAIR}"
            )
        size = reader.varint("the size of a section")
        start = reader.position
        reader.skip(size, f"section {kind}")
        sections[kind] = data[start : start + size]
    if len(sections) < 2:
        raise FormatError(
            f"The file lacks a section: expected types {HEADER} and {TENSORS}, found "
            f"{sorted(sections)}. {REPAIR}"
        )
    return sections


def _check_nodes(reader: Reader, text: bytes, mark: bytes) -> None:
    """Counts what the text will become: a value of two bytes takes a hundred."""
    nodes = sum(text.count(one) for one in (b",", b"[", b"{"))
    nodes += NODE_VALUES * text.count(mark) if mark else 0
    if NODE_BYTES * nodes > max(reader.max_bytes, SMALL):
        raise reader.too_large(NODE_BYTES * nodes, f"the {nodes} values of the header")


def write_json(value: Any, *, dictionary: bytes = b"") -> bytes:
    """A JSON value: size of its UTF-8 text, size of the deflate stream, stream."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return varint(len(text)) + write_deflated(text, dictionary=dictionary)


def read_json(
    section: bytes,
    *,
    max_bytes: int = MAX_BYTES,
    dictionary: bytes = b"",
    mark: bytes = b"",
) -> Any:
    """Reads what `write_json` wrote; each `mark` in it stands for 128 values.

    Raises:
        FormatError: if it is damaged, no JSON, or larger than `max_bytes`.
    """
    reader = Reader(section, max_bytes=max_bytes)
    size = reader.varint("the size of the header")
    reader.reserve(size, "the header")
    text = read_deflated(reader, size, "the header", dictionary=dictionary)
    if reader.left:
        raise FormatError(
            f"The file is damaged: {reader.left} bytes follow the header. {REPAIR}"
        )
    _check_nodes(reader, text, mark)
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"The file is damaged: its header is not JSON ({error}). {REPAIR}"
        ) from error
