import time

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from keras_dlopt.codecs import Huffman
from keras_dlopt.codecs.bits import BitReader, BitWriter
from keras_dlopt.codecs.huffman import canonical_codes, code_lengths
from keras_dlopt.codecs.huffman_table import read_lengths, write_lengths
from keras_dlopt.errors import ConfigError, FormatError
from reference import huffman as reference


def as_text(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def test_exact_stream_written_by_hand():
    # Lengths 1, 3, 3, 2; codes 0, 110, 111, 10.
    table = "110010000001001011010"
    codes = "011001110010"
    text = as_text(Huffman().encode([0, 1, 0, 2, 0, 0, 3]))
    assert text == "00000111" + (table + codes).ljust(40, "0")


def test_one_symbol_costs_its_table_alone():
    # Count 9; one run: 5 symbols skipped (6 = 00110), 1 used (1).
    assert as_text(Huffman().encode([5] * 9)) == "00001001" + "10011010"
    assert len(Huffman().encode(np.full(10**6, 3))) == 4


def test_empty():
    assert Huffman().encode([]) == b"\0"
    assert Huffman().decode(b"\0").tolist() == []


@given(npst.arrays(np.int64, st.integers(0, 300), elements=st.integers(0, 65536)))
def test_round_trip(symbols):
    assert np.array_equal(Huffman().decode(Huffman().encode(symbols)), symbols)


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(3, 24))
def test_round_trip_under_a_limit(symbols, limit):
    assert Huffman(limit=limit).decode(
        Huffman(limit=limit).encode(symbols)
    ).tolist() == (symbols)


@pytest.mark.parametrize(
    "symbols",
    [np.arange(65536), np.arange(65537)[::-1], np.repeat(np.arange(65536), 2), [65535]],
    ids=["each once", "with escape", "each twice", "last alone"],
)
def test_large_alphabets(symbols):
    data = Huffman().encode(symbols)
    assert np.array_equal(Huffman().decode(data), symbols)


def test_long_codes_and_many_chunks_survive():
    rng = np.random.default_rng(0)
    symbols = np.minimum(rng.geometric(0.5, 300_000) - 1, 40)
    symbols[rng.integers(0, symbols.size, 50)] = rng.integers(20, 60, 50)
    assert code_lengths(np.bincount(symbols)).max() > 12
    assert np.array_equal(Huffman().decode(Huffman().encode(symbols)), symbols)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=200))
def test_lengths_are_optimal(counts):
    lengths = code_lengths(counts).astype(int)
    assert int((np.array(counts) * lengths).sum()) == reference.total_bits(counts)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=5), st.integers(3, 5))
def test_lengths_are_optimal_under_a_limit(counts, limit):
    lengths = code_lengths(counts, limit=limit).astype(int)
    assert lengths.max() <= limit
    best = reference.best_limited_bits(counts, limit)
    assert int((np.array(counts) * lengths).sum()) == best


def test_lengths_stop_at_24():
    counts = [1, 1]
    while len(counts) < 40:
        counts.append(counts[-1] + counts[-2])
    lengths = code_lengths(counts).astype(int)
    assert lengths.max() == 24
    assert (0.5**lengths).sum() == 1


@given(st.lists(st.integers(0, 50), min_size=2, max_size=80))
def test_codes_are_the_textbook_ones(counts):
    lengths = code_lengths(counts)
    codes = canonical_codes(lengths)
    expected = reference.canonical(lengths.tolist())
    found = {s: format(codes[s], f"0{n}b") for s, n in enumerate(lengths.tolist()) if n}
    assert found == expected


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_a_bit_by_bit_decoder_reads_the_stream(symbols):
    counts = np.bincount(symbols)
    codes = reference.canonical(code_lengths(counts).tolist())
    text = as_text(Huffman().encode(symbols)[1:])
    payload = "".join(codes.get(s, "") for s in symbols)
    table_bits = Huffman().cost(counts) - len(payload)
    assert text[table_bits:].rstrip("0") == payload.rstrip("0")
    if codes:
        assert reference.decode(payload, codes) == symbols


def test_430k_symbols_decode_fast():
    rng = np.random.default_rng(1)
    symbols = np.clip(np.rint(rng.normal(128, 20, 430_000)), 0, 255).astype(int)
    data = Huffman().encode(symbols)
    start = time.perf_counter()
    decoded = Huffman().decode(data)
    # 0.05 s on an idle core; the margin is for a busy machine.
    assert time.perf_counter() - start < 1
    assert np.array_equal(decoded, symbols)


def test_refusals():
    with pytest.raises(ConfigError, match=r"limit must be in \[1, 24\].*limit=1, 3"):
        Huffman(limit=1).encode([0, 1, 2])
    with pytest.raises(ConfigError, match=r"symbols must be in \[0, 65536\].*70000"):
        Huffman().encode([70000])


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ("110010000001001011010", "end after 3 of 70 codes"),
        ("110010000011111", "do not form a complete code"),
        ("11001000000101011", "code lengths from 0 to 1"),
        ("1101000001" + 16 * "0" + "1" + 16 * "0", "difference of lengths"),
        ("11" + 17 * "0" + "1" + 17 * "1", "an alphabet of"),
        (17 * "0" + "1" + 17 * "1", "runs of symbols"),
        ("110", "ends in the middle of a code"),
        ("110010000", "ends in the middle of a code"),
        ("11100001", "padded with bits other than zero"),
    ],
)
def test_damaged_streams(bits, message):
    bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    with pytest.raises(FormatError, match=message):
        Huffman().decode(b"\x46" + data)


def test_the_declared_number_is_limited():
    with pytest.raises(FormatError, match="the symbols would take 800 bytes"):
        Huffman().decode(b"\x64\xc0", max_bytes=799)


@pytest.mark.parametrize("lengths", [[1, 2], [2, 2, 2], [1, 1, 1]])
def test_tables_of_codes_that_are_not_complete(lengths):
    writer, lengths = BitWriter(), np.array(lengths)
    write_lengths(writer, lengths, lengths > 0)
    with pytest.raises(FormatError, match="lengths that do not form a complete code"):
        read_lengths(BitReader(writer.to_bytes()))
