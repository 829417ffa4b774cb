import numpy as np
import pytest

from keras_dlopt.codecs import Tensor, context_model, contexts, find_grid
from keras_dlopt.codecs.entropy import symbol_entropy_bits
from keras_dlopt.codecs.reader import Reader, varint
from keras_dlopt.codecs.tensor import decode_tensor
from keras_dlopt.errors import FormatError
from reference import context_file, huffman_file


def pruned(shape, seed=0, share=0.05):
    """Integers whose zeros gather in rows and columns, as those of pruned layers."""
    rng = np.random.default_rng(seed)
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    odds = rng.gamma(0.5, 1, (rows, 1)) * rng.gamma(0.5, 1, columns)
    kept = rng.random((rows, columns)) < np.minimum(share * odds / odds.mean(), 0.9)
    codes = np.rint(rng.normal(0, 3, (rows, columns))) * kept + 0.0
    return codes.reshape(shape)


SHAPES = [(40, 30), (7, 100), (3, 3, 8, 16), (16, 1), (1, 80), (8, 4, 6)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_a_decoder_of_another_make(shape, share):
    codes = pruned(shape, share=share).astype(np.int64)
    codes.flat[0], codes.flat[-1] = 2**31 - 1, -(2**20)
    stream = contexts.write(codes.reshape(-1), shape, 10**6)
    found = contexts.read(Reader(stream, max_bytes=2**20), codes.size, shape)
    assert np.array_equal(found, codes.reshape(-1))
    source = huffman_file.Bytes(stream)
    assert context_file.integers(source, codes.size, shape[-1]) == found.tolist()
    assert source.at == len(stream)


def test_the_tables_are_what_the_specification_says():
    squash, stretch, steps = context_model.tables()
    assert squash[::512] == [22, 162, 1179, 7812, 32768, 57724, 64357, 65374]
    assert [stretch[p] for p in (0, 256, 2048, 4095)] == [-2048, -700, 0, 2047]
    assert steps[:3] == [43690, 26214, 18724]
    assert squash == sorted(squash)


def test_far_below_the_entropy_where_zeros_gather_and_both_ways_the_same(monkeypatch):
    codes = pruned((400, 200), share=0.03)
    scales = np.random.default_rng(1).uniform(0.1, 1, 200).astype(np.float32)
    weights = (codes * scales).astype(np.float32)
    for array, method in ((codes.astype(np.int8), "codebook"), (weights, "grid")):
        data = Tensor().encode(array, hint=find_grid(array))
        assert (
            decode_tensor(Reader(data, max_bytes=2**24)).method == f"context {method}"
        )
        scale = 32 * 200 if method == "grid" else 0
        assert 8 * len(data) < 0.9 * symbol_entropy_bits(codes) + scale
        assert np.array_equal(Tensor().decode(data), array)
        found = huffman_file.tensor(huffman_file.Bytes(data))
        assert found.tobytes() == array.tobytes()
        with monkeypatch.context() as patch:
            patch.setenv("KERAS_DLOPT_NO_NUMBA", "1")
            assert Tensor().encode(array, hint=find_grid(array)) == data
            assert np.array_equal(Tensor().decode(data), array)


def record(stride, size, data, *, shape=(10, 20), kind=65):
    head = bytes([0x22]) + b"".join(map(varint, shape)) + bytes([kind])
    book = varint(4) + bytes([0, 1])
    return head + book + varint(stride) + varint(size) + data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (record(0, 4, bytes(4)), r"rows of shape \(10, 20\) at a distance of 0"),
        (record(11, 4, bytes(4)), "at a distance of 11"),
        (record(2, 9, bytes(4)), "needs 9 bytes, but only 4"),
        (record(2, 0, b""), "200 integers by their neighbours in 0 bytes"),
        (record(2, 1, b"\x55"), "200 integers end after 1 bytes|indices .* into"),
        (record(2, 300, bytes(range(256)) + bytes(44)), "indices|end after"),
        (record(2, 8, bytes(8), shape=(10**6, 1)), "1000000 integers by their"),
        (
            b"\x22\x05\x02\x41"
            + varint(4)
            + b"\x01\x02"
            + varint(1)
            + varint(2)
            + b"\xff\xff",
            "0 of them zero",
        ),
        (
            b"\x2b\x02\x02\x42\x0b\x02" + bytes(4) + varint(1) + varint(0),
            "4 integers by",
        ),
        (b"\x22\x02\x02\x42\x0b\x02" + bytes(4), "a grid of shape"),
        (b"\x22\x02\x00\x41", "an empty tensor"),
    ],
)
def test_damage(data, message):
    with pytest.raises(FormatError, match=message):
        Tensor().decode(data, max_bytes=10**7)


def test_codes_beyond_the_limit(monkeypatch):
    codes = np.zeros((10, 10), np.int64)
    codes[0, 0], codes[9, 9] = 2**31 + 5, 1
    stream = contexts.write(codes.reshape(-1), codes.shape, 10**4)
    head = b"\x2b\x0a\x0a\x42" + b"\x0b\x02\x00\x00\x80\x3f"
    with pytest.raises(FormatError, match="a grid code of 2147483653"):
        Tensor().decode(head + stream)


@pytest.mark.parametrize("seed", range(40))
def test_altered_streams_raise_nothing_else(seed):
    rng = np.random.default_rng(seed)
    codes = pruned((30, 40), share=0.1).astype(np.int64)
    stream = bytearray(contexts.write(codes.reshape(-1), codes.shape, 10**4))
    for at in rng.integers(0, len(stream), 3):
        stream[at] = rng.integers(0, 256)
    try:
        found = contexts.read(Reader(bytes(stream), max_bytes=10**6), 1200, (30, 40))
    except FormatError:
        return
    assert found.shape == (1200,)
