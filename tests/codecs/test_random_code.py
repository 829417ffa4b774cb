"""Random codes against candidates that are made one at a time."""

import importlib.util
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_dlopt.codecs import Tensor, candidates
from keras_dlopt.codecs.random_code import chosen
from keras_dlopt.codecs.reader import Reader, varint
from keras_dlopt.codecs.tensor import decode_tensor, least_version
from keras_dlopt.errors import FormatError
from keras_dlopt.storage.contents import read_contents
from keras_dlopt.storage.dictionary import DICTIONARY
from reference import huffman_file
from reference import random_code as reference

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SPEC = importlib.util.spec_from_file_location("make_v6", GOLDEN / "make_v6.py")
make_v6 = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_v6)


@pytest.fixture(autouse=True)
def _fresh_keras_state():
    """No Keras here."""


def coded(rng, shape, length, bits, unit=2.0**-9):
    """An array of candidates."""
    count = int(np.prod(shape))
    numbers = rng.integers(0, 2**bits, -(-count // length))
    codes = np.zeros(count)
    found = candidates.of(np.repeat(numbers, length)[:count], np.arange(count))
    codes[candidates.scattered(count)] = found
    return (codes.reshape(shape) * unit).astype("float32"), numbers


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**20 - 1), st.integers(0, 2**24 - 1), st.integers(1, 300))
def test_candidates_are_those_made_one_at_a_time(number, place, count):
    expected = reference.candidate(number, place)
    assert candidates.of(number, place) == expected
    draws = place // 4 + np.arange(3)
    found = candidates.drawn(np.array([[0], [number]]), draws)
    assert found.shape == (2, 12)
    assert found[1, place % 4] == expected
    order = candidates.scattered(count)
    assert order.tolist() == [reference.element(p, count) for p in range(count)]
    assert sorted(order) == list(range(count))


def test_candidates_are_normal_deviates():
    from scipy import stats

    every = candidates.deviates().astype(int)
    sizes = np.arange(1, 253)
    found = [(np.abs(every) >= j).mean() for j in sizes]
    expected = 2 * stats.norm.sf((sizes - 0.5) / 60)
    np.testing.assert_allclose(found, expected, atol=2**-16)
    # Of one number, of one place, and of neighbours of both: as good as independent.
    drawn = candidates.of(np.arange(400)[:, None], np.arange(400)) / 60
    assert abs(drawn.mean()) < 0.01
    assert drawn.std() == pytest.approx(1, abs=0.01)
    for other in (drawn[1:], drawn[:, 1:]):
        same = drawn[tuple(slice(0, n) for n in other.shape)]
        assert abs(np.mean(same * other)) < 0.01
    assert stats.kstest(drawn[:, 7], "norm").pvalue > 1e-3
    assert stats.kstest(drawn[7], "norm").pvalue > 1e-3


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(1,), (9,), (70,), (8, 30), (3, 3, 4, 10)]),
    st.integers(4, 80),
    st.integers(1, 16),
)
def test_records_come_back_to_the_bit(seed, shape, length, bits):
    array, numbers = coded(np.random.default_rng(seed), shape, length, bits)
    data = Tensor().encode(array)
    source = huffman_file.Bytes(data)
    other = huffman_file.tensor(source)
    assert source.at == len(data)
    for found in (decode_tensor(Reader(data, max_bytes=10**6)).array, other):
        assert found.tobytes() == array.tobytes()
    if array.size >= 70 and numbers.size > 1 and 4 < bits <= 4 * length:
        taken = -(-numbers.size * max(int(numbers.max()).bit_length(), 1) // 8)
        assert decode_tensor(Reader(data, max_bytes=10**6)).method == "random code"
        assert len(data) <= taken + 16
        assert least_version(data) == 6


@pytest.mark.parametrize("kind", ["bell", "ternary", "sparse", "small"])
def test_other_codes_are_not_taken_for_random(kind):
    rng = np.random.default_rng(0)
    codes = {
        "bell": np.rint(rng.normal(size=(200, 30)) * 60).clip(-252, 252),
        "ternary": rng.integers(-1, 2, (200, 30)),
        "sparse": np.rint(rng.normal(size=(200, 30)) * 9)
        * (rng.random((200, 30)) < 0.1),
        "small": np.arange(-30, 40),
    }[kind].astype(int)
    assert chosen(codes) is None
    assert least_version(Tensor().encode((codes / 64).astype("float32"))) == 0


def test_a_code_out_of_place_is_found():
    array, _ = coded(np.random.default_rng(1), (40, 30), 200, 12)
    codes = np.rint(array * 512).astype(int)
    assert chosen(codes) is not None  # found where all are candidates
    codes[39, 29] += 1
    assert chosen(codes) is None


def test_blocks_that_chance_makes_longer_are_found():
    # The first code of the second block fits the number of the first as well.
    for second in range(6, 2**12):
        if candidates.of(5, 50) == candidates.of(second, 50):
            break
    numbers = np.repeat([5, second], 50)
    codes = np.zeros(100, int)
    codes[candidates.scattered(100)] = candidates.of(numbers, np.arange(100))
    length, found = chosen(codes)
    assert length in (50, 51)
    assert found.tolist() == [5, second]


def head(count):
    """A record of float32 up to the parameters of its random code."""
    scale = Tensor().encode(np.float32(0.5))
    return bytes([1 << 4 | 11]) + varint(count) + bytes([67]) + scale


@pytest.mark.parametrize(
    ("rest", "count", "message"),
    [
        (b"\x00\x02", 10, "0 bits for each 2 of 10"),
        (b"\x15\x02", 10, "21 bits for each 2 of 10"),
        (b"\x0c\x00", 10, "12 bits for each 0 of 10"),
        (b"\x0c\x0b", 10, "12 bits for each 11 of 10"),
        (b"\x0c" + varint(6145), 9_000, "12 bits for each 6145 of 9000"),
        (b"\x0c\x05\x00", 10, "the numbers of a random code needs 3 bytes"),
        (b"\x0c" + varint(2**24 + 1), 2**24 + 1, "of 16777217 elements"),
        (b"\x0c\x0a\x00", 10, "needs 2 bytes, but only 1"),
    ],
)
def test_damage_is_refused(rest, count, message):
    with pytest.raises(FormatError, match=message):
        decode_tensor(Reader(head(count) + rest, max_bytes=2**30))


def test_decoding_may_not_take_more_memory_than_allowed():
    data = head(2**20) + b"\x0c" + varint(2**12) + bytes(384)
    with pytest.raises(FormatError, match="pass a larger max_bytes"):
        decode_tensor(Reader(data, max_bytes=2**23))
    assert decode_tensor(Reader(data, max_bytes=2**26)).array.size == 2**20


def test_a_golden_file_reads_forever():
    data = (GOLDEN / "v6.dlopt").read_bytes()
    assert data[4] == 6
    contents = read_contents(data, max_bytes=10**6)
    _, others = huffman_file.file(data, DICTIONARY)
    methods = [tensor.method for tensor in contents.tensors]
    assert methods[:3] == ["random code"] * 3
    assert methods[3] != "random code"
    every = zip(make_v6.arrays(), contents.tensors, others, strict=True)
    for expected, tensor, other in every:
        assert tensor.array.tobytes() == expected.tobytes() == other.tobytes()
