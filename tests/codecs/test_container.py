import json
import zlib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from keras_dlopt.codecs import Deflate
from keras_dlopt.codecs.container import (
    CHECKSUM_BYTES,
    checksum,
    read_container,
    read_json,
    write_container,
    write_json,
)
from keras_dlopt.codecs.reader import varint
from keras_dlopt.errors import FormatError

FILE = write_container({1: b"abc", 2: b"defg"}, version=1)


def signed(body: bytes) -> bytes:
    return body + checksum(body)


def test_exact_bytes():
    body = b"\x89DLO\x01\x01\x03abc\x02\x04defg"
    assert FILE[:-8] == body
    # RFC 7693's BLAKE2b with an 8-byte digest, fixed here once and for all.
    assert FILE[-8:].hex() == "a07fd9d9d0cfb080"
    assert read_container(FILE) == {1: b"abc", 2: b"defg"}


@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_any_altered_byte_is_found(at, change):
    damaged = bytearray(FILE)
    damaged[at] ^= change
    with pytest.raises(FormatError):
        read_container(bytes(damaged))


def test_any_cut_and_any_addition_is_found():
    for end in range(len(FILE)):
        with pytest.raises(FormatError):
            read_container(FILE[:end])
    with pytest.raises(FormatError, match="damaged or truncated"):
        read_container(FILE + b"\0")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Not a keras-dlopt file: it begins with b''"),
        (b"PK\x03\x04" + bytes(30), "Not a keras-dlopt file"),
        (b"\x89DLO\x01", "cut short after 5 bytes"),
        (
            signed(b"\x89DLO\x07"),
            "format version 7; this package reads versions 1 to 6",
        ),
        (
            signed(b"\x89DLO\x01\x02\x00\x01\x00"),
            "section of type 2, or it is out of order",
        ),
        (signed(b"\x89DLO\x01\x07\x00"), "unknown or repeated section of type 7"),
        (signed(b"\x89DLO\x01\x01\x00\x01\x00"), "repeated section of type 1"),
        (signed(b"\x89DLO\x01\x01\x00"), r"lacks a section.*found \[1\]"),
        (signed(b"\x89DLO\x01\x01\x05ab"), "section 1 needs 5 bytes, but only 2"),
        (signed(b"\x89DLO\x01\x01" + 8 * b"\xff" + b"\x7f"), "section 1 needs 9223"),
    ],
)
def test_hostile_files(data, message):
    with pytest.raises(FormatError, match=message):
        read_container(data)


def raw_deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return coder.compress(data) + coder.flush()


def section(text: bytes) -> bytes:
    stream = raw_deflate(text)
    return varint(len(text)) + varint(len(stream)) + stream


def test_json_round_trip():
    value = {"a": [1, 2.5, None, True, "ü"], "b": {}}
    assert read_json(write_json(value)) == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (section(b"{"), "its header is not JSON"),
        (section(b"\xff\xfe"), "its header is not JSON"),
        (section(b"9" * 5000), "its header is not JSON"),
        (section(b"[" * 100_000), "its header is not JSON"),
        (section(b"{}") + b"x", "1 bytes follow the header"),
        (section(bytes(10**6)), "the header would take 1000000 bytes"),
        (b"\x02" + section(bytes(10**6))[3:], "should be 2 bytes in one deflate"),
    ],
)
def test_hostile_headers(data, message):
    with pytest.raises(FormatError, match=message):
        read_json(data, max_bytes=200_000)


@given(st.binary(max_size=300))
def test_deflate_round_trip(data):
    assert Deflate().decode(Deflate().encode(data)) == data


def test_header_is_plain_json():
    size, stream = write_json({"a": 1})[0], write_json({"a": 1})[2:]
    text = zlib.decompress(stream, -15)
    assert len(text) == size
    assert json.loads(text) == {"a": 1}
    assert CHECKSUM_BYTES == 8
