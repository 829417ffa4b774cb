import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from keras_dlopt.codecs import bits as bits_module
from keras_dlopt.codecs.bits import BitReader, BitWriter, windows
from keras_dlopt.codecs.reader import Reader, unzigzag, varint, zigzag
from keras_dlopt.errors import FormatError

CODES = st.lists(
    st.integers(0, 32).flatmap(
        lambda n: st.tuples(st.integers(0, 2**n - 1), st.just(n))
    ),
    max_size=80,
)


def text_of(codes) -> str:
    return "".join(format(c, f"0{n}b") if n else "" for c, n in codes)


@given(CODES, st.integers(1, 30))
def test_writer_against_strings(codes, chunk):
    writer = BitWriter()
    bits_module.CHUNK, kept = chunk, bits_module.CHUNK
    try:
        writer.write([c for c, _ in codes], [n for _, n in codes])
    finally:
        bits_module.CHUNK = kept
    text = text_of(codes)
    found = "".join(f"{byte:08b}" for byte in writer.to_bytes())
    assert writer.bits == len(text)
    assert found == text.ljust(-(-len(text) // 8) * 8, "0")


@given(st.lists(st.integers(1, 65535), max_size=600))
def test_gamma(values):
    writer = BitWriter()
    writer.gamma(values)
    reader = BitReader(b"\xff" + writer.to_bytes() + b"\xff", start=1)
    assert reader.gamma(len(values)) == values
    assert reader.position == 8 + writer.bits


def test_gamma_of_7_is_two_zeros_and_111():
    writer = BitWriter()
    writer.gamma([7, 1])
    assert writer.to_bytes() == bytes([0b00111100])


def test_windows_read_zeros_after_the_end():
    data = np.array([0xAB, 0xCD], np.uint8)
    found = windows(data, 0, 2)
    text = format(0xABCD, "016b").ljust(48, "0")
    assert found.tolist() == [int(text[i : i + 24], 2) for i in range(16)]


def test_a_cut_bit_string():
    with pytest.raises(FormatError, match="ends in the middle of a code"):
        BitReader(b"\x00").gamma(1)
    with pytest.raises(FormatError, match="ends in the middle of a code"):
        BitReader(b"").read(5)


@pytest.mark.parametrize(("data", "width"), [(b"\x81", 1), (b"\x00\x04", 13)])
def test_padding_must_be_zero(data, width):
    reader = BitReader(data)
    reader.read(width)
    with pytest.raises(FormatError, match="padded with bits other than zero"):
        reader.finish()


@given(st.integers(0, 2**63 - 1))
def test_varint(value):
    reader = Reader(varint(value), max_bytes=0)
    assert reader.varint("it") == value
    assert reader.left == 0


@given(st.integers(-(2**40), 2**40))
def test_zigzag(value):
    assert int(unzigzag(zigzag(value))) == value
    assert int(zigzag(value)) >= 0


def test_accounts():
    reader = Reader(bytes(10), max_bytes=5)
    reader.take(2, "a")
    reader.account("header")
    with reader.lump("codebook"):
        reader.take(3, "b")
        reader.account("values")
    reader.take(5, "c")
    reader.account("values", table_bits=6)
    assert reader.spent == {"header": 16, "codebook": 24, "values": 34, "tables": 6}
    with pytest.raises(FormatError, match=r"c would take 6 bytes.*may take 5 in all"):
        reader.reserve(6, "c")
