import dataclasses

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from keras_dlopt.codecs import Gaps, Huffman, Rans, Tensor, get, rans, rans_table
from keras_dlopt.codecs.bits import BitReader, BitWriter
from keras_dlopt.codecs.entropy import entropy_bits
from keras_dlopt.codecs.huffman_table import write_used
from keras_dlopt.codecs.reader import varint, zigzag
from keras_dlopt.errors import ConfigError, FormatError
from reference import huffman_file


def streams(n):
    """Sparse, dense and ternary codes, as pruned and quantized layers have them."""
    rng = np.random.default_rng(0)
    dense = np.clip(np.rint(rng.normal(0, 25, n)), -127, 127)
    signs = np.sign(dense + 0.5)
    return {
        "sparse": dense * (rng.random(n) < 0.1),
        "dense": dense,
        "ternary": signs * (rng.random(n) < 0.01),
    }


@given(
    npst.arrays(
        np.int64,
        st.integers(0, 300),
        elements=st.one_of(st.integers(0, 3), st.integers(0, 65536)),
    )
)
def test_round_trip_and_a_decoder_of_another_make(symbols):
    data = Rans().encode(symbols)
    assert np.array_equal(Rans().decode(data), symbols)
    source = huffman_file.Bytes(data)
    assert huffman_file.rans_stream(source, source.varint()) == symbols.tolist()
    assert source.at == len(data)


def test_the_table_of_the_specification():
    table = "1001" + "11010" + "0000" + "0001" + "1001" + "010" + "0"
    text = "".join(f"{byte:08b}" for byte in Rans().encode([0, 1, 0, 0])[1:])
    assert text.startswith(table.ljust(32, "0"))


@given(
    st.lists(st.one_of(st.integers(1, 9), st.integers(1, 10**6)), min_size=2),
    st.sampled_from(rans_table.PRECISIONS),
    st.sampled_from(rans_table.MANTISSAS),
)
def test_frequencies_are_found_for_any_counts(counts, precision, mantissa):
    counts = np.array(counts)
    found = rans_table.frequencies(counts, precision, mantissa)
    assert found.sum() == 1 << precision
    table = rans_table.RansTable(precision, 0, mantissa, np.arange(counts.size), found)
    again = rans_table.read_table(BitReader(rans_table.write_table(table)))
    assert again.frequency.tolist() == found.tolist()


@pytest.mark.parametrize("width", [5, 30, 60])
def test_bells_take_a_thousandth_more_than_their_entropy(width):
    for seed in range(20):
        codes = np.random.default_rng(seed).normal(127, width, 300_000)
        counts = np.bincount(np.clip(np.rint(codes), 0, 254).astype(int))
        _, bits = rans_table.plan(counts)
        assert bits < 1.001 * entropy_bits(counts) + 8 * (16 + 2 * counts.size)


@pytest.mark.parametrize("name", ["sparse", "dense", "ternary"])
def test_both_ways_give_the_same_bytes_near_the_entropy(name, monkeypatch):
    codes = streams(400_000)[name].astype(np.int8)
    data = Tensor().encode(codes)
    assert np.array_equal(Tensor().decode(data), codes)
    monkeypatch.setenv("KERAS_DLOPT_NO_NUMBA", "1")
    assert Tensor().encode(codes) == data
    assert np.array_equal(Tensor().decode(data), codes)
    bound = entropy_bits(np.unique(codes, return_counts=True)[1]) / 8
    # 0.1 % and the head and tables of 255 symbols, twice where it is sparse.
    assert len(data) < 1.001 * bound + 16 + 2 * 255


@pytest.mark.parametrize("coder", [Huffman(), Rans()], ids=lambda c: c.name)
@pytest.mark.parametrize("top", [6, 200, 3_000, 30_000])
def test_compiled_loops_and_numpy_agree(coder, top, monkeypatch):
    rng = np.random.default_rng(top)
    symbols = np.minimum(rng.geometric(5 / top, 60_000) - 1, top)
    data = coder.encode(symbols)
    found = coder.decode(data)
    monkeypatch.setenv("KERAS_DLOPT_NO_NUMBA", "1")
    assert coder.encode(symbols) == data
    assert np.array_equal(coder.decode(data), symbols)
    assert np.array_equal(found, symbols)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.4])
def test_positions(share, monkeypatch):
    positions = np.flatnonzero(np.random.default_rng(0).random(500_000) < share)
    data = Gaps().encode(positions)
    assert np.array_equal(Gaps().decode(data, size=500_000), positions)
    monkeypatch.setenv("KERAS_DLOPT_NO_NUMBA", "1")
    assert Gaps().encode(positions) == data
    assert np.array_equal(Gaps().decode(data, size=500_000), positions)


def test_refusals():
    with pytest.raises(ConfigError, match=r"symbols in \[0, 65536\].*70000. Use Huff"):
        Rans().encode([0, 70_000])
    with pytest.raises(ConfigError, match="far fewer than 32768 different ones"):
        Rans().encode(np.arange(40_000))
    assert Huffman().decode(Huffman().encode(np.arange(40_000)))[-1] == 39_999
    assert get(Rans().config()) == Rans()


def table(precision, lanes, mantissa, lengths, used=None, bits=()):
    writer = BitWriter()
    writer.write([precision], [4])
    write_used(writer, np.ones(len(lengths), bool) if used is None else used)
    writer.write([lanes, mantissa, lengths[0]], [4, 4, 4])
    writer.gamma(zigzag(np.diff(lengths)) + 1)
    writer.write(bits, np.ones(len(bits), int))
    return writer.to_bytes()


def states(*values):
    return b"".join(value.to_bytes(4, "little") for value in values)


GOOD = table(9, 0, 1, [9, 8], bits=[0])


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", "ends in the middle of a code"),
        (table(9, 12, 1, [9, 8], bits=[0]), r"2\*\*12 lanes, 2 symbols"),
        (table(9, 0, 1, [9], used=np.array([True])), r"1 symbols of 2\*\*9"),
        (table(0, 0, 1, [9, 8], bits=[0]), "2 symbols of precision 0"),
        (table(3, 0, 1, [10, 1]), "frequencies of 1 to 10 bits"),
        (table(9, 0, 1, [9, 0]), "frequencies of 0 to 9 bits"),
        (table(9, 0, 1, [1, 24]), "a difference of lengths coded as 47"),
        (table(4, 0, 0, [4, 4, 4]), "add up to more than all"),
        (table(4, 0, 15, [1] * 17), r"17 symbols of 2\*\*4"),
        (GOOD[:-1], "ends in the middle of a code"),
        (GOOD + states(2**16)[:3], "the symbols needs 4 bytes, but only 3"),
        (GOOD + states(2**16), "the number of words needs 1 bytes"),
        (GOOD + states(2**16 - 1) + varint(0), "does not end where it began"),
        (GOOD + states(2**17) + varint(0), "does not end where it began"),
        (GOOD + states(2**16) + varint(2**40), "needs 2199023255552 bytes"),
        (GOOD + states(2**16) + varint(71) + bytes(142), "does not end where it"),
        (GOOD + states(2**16) + varint(1) + bytes(2), "does not end where it began"),
    ],
)
@pytest.mark.parametrize("count", [70, 70_000])
def test_damaged_streams(stream, message, count):
    if count > 70 and "142" in message + str(len(stream)):
        stream = GOOD + states(2**16) + varint(count + 1) + bytes(2 * count + 2)
    with pytest.raises(FormatError, match=message):
        Rans().decode(varint(count) + stream)


def test_compiled_loops_do_not_read_beyond_the_words():
    data = bytearray(Rans().encode(streams(100_000)["dense"].astype(int) + 127))
    rng = np.random.default_rng(0)
    for _ in range(50):
        damaged = bytearray(data)
        for at in rng.integers(200, len(data), 4):
            damaged[at] ^= int(rng.integers(1, 256))
        with pytest.raises(FormatError, match="does not end where it began"):
            Rans().decode(bytes(damaged))


@pytest.mark.parametrize("log_lanes", [0, 1, 4, 5, 8])
def test_any_number_of_lanes(log_lanes, monkeypatch):
    monkeypatch.setenv("KERAS_DLOPT_NO_NUMBA", "1")
    symbols = np.abs(np.rint(np.random.default_rng(0).normal(0, 5, 70_001))).astype(int)
    plain, _ = rans_table.plan(np.bincount(symbols))
    chosen = dataclasses.replace(plain, log_lanes=log_lanes)
    monkeypatch.setattr(rans, "plan", lambda counts: (chosen, 0))
    stream = Rans().encode(symbols)
    assert np.array_equal(Rans().decode(stream), symbols)
    start = len(varint(symbols.size)) + len(rans_table.write_table(chosen))
    start += 4 << log_lanes
    words = (len(stream) - start - 3) // 2 - 300  # their number takes 3 bytes
    cut = stream[:start] + varint(words) + stream[start + 3 : start + 3 + 2 * words]
    with pytest.raises(FormatError, match="does not end where it began"):
        Rans().decode(cut)
