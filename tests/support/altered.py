"""Compressed files altered in a few places, under checksums that fit."""

from keras_dlopt.codecs.container import (
    HEADER,
    SHORT,
    read_container,
    version_of,
    write_container,
)
from keras_dlopt.codecs.deflate import inflate, write_deflated
from keras_dlopt.codecs.reader import Reader, varint
from keras_dlopt.storage.dictionary import DICTIONARY, SHORT_DICTIONARY

LARGEST = 2**24  # bytes of the header's text


def mutated(data, rng):
    """Some bytes altered, cut out, doubled, or set to what sizes are made of."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at, size = int(rng.integers(0, len(data) + 1)), int(rng.integers(1, 9))
        action = int(rng.integers(0, 5))
        if action == 0 and at < len(data):
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif action == 1 and at < len(data):
            data[at] = int(rng.integers(0, 256))
        elif action == 2:
            del data[at : at + size]
        elif action == 3:
            data[at:at] = data[at : at + size]
        else:
            data[at:at] = varint(int(rng.integers(0, 2 ** int(rng.integers(1, 62)))))
    return bytes(data)


def broken(data, rng):
    """A mutation of one part of a file, under a checksum that fits."""
    sections, version = read_container(data), version_of(data)
    part = int(rng.integers(0, 4))
    head = SHORT if SHORT in sections else HEADER
    dictionary = SHORT_DICTIONARY if head == SHORT else DICTIONARY
    if part == 0:
        kind = max(set(sections) - {SHORT})  # with an index or without
        sections[kind] = mutated(sections[kind], rng)
    elif part == 1:
        sections[head] = mutated(sections[head], rng)
    else:
        reader = Reader(sections[head], max_bytes=LARGEST)
        size, length = reader.varint("size"), reader.varint("length")
        text = inflate(reader.take(length, "text"), size, "text", dictionary=dictionary)
        text = mutated(text, rng)
        stream = write_deflated(text, level=1, dictionary=dictionary)
        sections[head] = varint(len(text)) + stream
    return write_container(sections, version=version)
