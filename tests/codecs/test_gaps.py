import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from keras_dlopt.codecs import Gaps
from keras_dlopt.codecs.entropy import mask_entropy_bits
from keras_dlopt.codecs.gaps import to_positions, to_symbols
from keras_dlopt.codecs.reader import varint
from keras_dlopt.errors import ConfigError, FormatError

POSITIONS = st.sets(st.integers(0, 5000), max_size=200).map(sorted)


def test_exact_stream_written_by_hand():
    # Gaps 0, 0, 7 under limit 8: symbols 0 and 7, codes 0 and 1.
    table = "01011001111000011"
    text = "".join(f"{byte:08b}" for byte in Gaps().encode([0, 1, 9]))
    assert text == "0000001100000011" + (table + "001").ljust(24, "0")


def test_escapes():
    symbols = to_symbols(np.array([2, 15, 16]), 4)
    assert symbols.tolist() == [2, 4, 4, 4, 0, 0]
    assert to_positions(symbols, 4).tolist() == [2, 15, 16]


@given(POSITIONS, st.sampled_from([None, 1, 2, 8, 4096, 32768]))
def test_round_trip(positions, limit):
    codec = Gaps(limit=limit)
    assert codec.decode(codec.encode(positions), size=5001).tolist() == positions


@pytest.mark.parametrize("density", [0.02, 0.05, 0.1, 0.2])
def test_random_masks_cost_nearly_their_entropy(density):
    size = 200_000
    kept = np.flatnonzero(np.random.default_rng(0).random(size) < density)
    bits = 8 * len(Gaps().encode(kept))
    # Huffman's whole bits cost about 1 % on geometric gaps at these densities.
    assert bits < 1.015 * mask_entropy_bits(size, kept.size)


def test_refusals():
    with pytest.raises(ConfigError, match=r"power of two up to 32768\. Received: 7"):
        Gaps(limit=7)
    with pytest.raises(ConfigError, match=r"rise strictly. Received: \[3, 3\]"):
        Gaps().encode([3, 3])


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (b"\x20\x01", 5, r"1 gaps of limit 2\*\*32"),
        (b"\x01" + varint(9), 8, "9 gaps of limit"),
        (Gaps(limit=8).encode([7]), 5, "position 7 in an array of 5"),
        (Gaps(limit=8).encode([5]), 5, "position 5 in an array of 5"),
        (Gaps(limit=2).encode([0, 3]), 3, "position 3 in an array of 3"),
        # One run, skipping 2 symbols: only the escape of limit 2.
        (b"\x01\x01\xb8", 5, "above its limit 2, or an escape at the end"),
        (b"\x01", 5, "the number of gaps needs 1 bytes, but only 0 are left"),
    ],
)
def test_damaged_streams(data, size, message):
    with pytest.raises(FormatError, match=message):
        Gaps().decode(data, size=size)


def test_many_rare_positions_take_few_symbols():
    """Escapes cost next to no bits; each takes the time of a symbol."""
    size = 2_000_000
    kept = np.flatnonzero(np.random.default_rng(0).random(size) < 0.01)
    _, limit, cost = Gaps().plan(kept)
    assert to_symbols(kept, limit).size < 8 * kept.size
    assert 8 * cost < 1.003 * mask_entropy_bits(size, kept.size)
