import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

from keras_dlopt.codecs import Codebook, Grid, Tensor, get
from keras_dlopt.codecs.coder import Values
from keras_dlopt.codecs.dtypes import NAMES, dtype_of
from keras_dlopt.codecs.entropy import mask_entropy_bits, symbol_entropy_bits
from keras_dlopt.codecs.reader import Reader
from keras_dlopt.codecs.tensor import decode_tensor, encode_tensor
from keras_dlopt.codecs.values import has_codebook
from keras_dlopt.errors import ConfigError, FormatError
from reference import huffman_file

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7)


def round_trip(array, hint=None, version=3):
    """Encodes, decodes, compares every bit, checks the accounts; gives the method."""
    array = np.asarray(array)
    data = encode_tensor(array, hint=hint, version=version)
    reader = Reader(data, max_bytes=2**24)
    decoded = decode_tensor(reader)
    assert decoded.array.dtype == array.dtype
    assert decoded.array.shape == array.shape
    assert decoded.array.tobytes() == array.tobytes()
    assert reader.left == 0
    assert sum(reader.spent.values()) == 8 * len(data)
    return decoded.method, len(data), reader.spent


@st.composite
def bit_patterns(draw):
    """Arrays of any dtype with any bits: NaN payloads, -0.0, denormals."""
    dtype = dtype_of(draw(st.sampled_from(NAMES)))
    shape = draw(SHAPES)
    top = 1 if dtype == np.bool_ else 2 ** (8 * dtype.itemsize) - 1
    zero_or_any = st.one_of(st.just(0), st.integers(0, top))
    few = draw(st.lists(zero_or_any, min_size=1, max_size=6))
    elements = draw(st.sampled_from([st.sampled_from(few), st.integers(0, top)]))
    bits = draw(npst.arrays(f"u{dtype.itemsize}", shape, elements=elements))
    return np.asarray(bits).view(dtype).reshape(shape)


@settings(max_examples=300)
@given(bit_patterns())
def test_every_bit_survives(array):
    round_trip(array)


@pytest.mark.parametrize("dtype", NAMES)
def test_every_dtype(dtype):
    values = np.arange(-40, 40).reshape(8, 10).astype(dtype_of(dtype))
    round_trip(values)
    round_trip(np.where(values == 1, values, values.dtype.type(0)))


def test_special_floats():
    special = [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, 3.4e38] + 40 * [0.0]
    round_trip(np.array(special, np.float32))
    payload = np.array([0x7FC00001, 0xFFC12345, 0, 0], np.uint32).view(np.float32)
    round_trip(payload)


def test_layouts_that_are_not_contiguous():
    array = np.random.default_rng(0).normal(size=(6, 8, 4)).astype(np.float32)
    round_trip(np.asfortranarray(array))
    round_trip(array[::2, ::-1].astype(">f4").astype(np.float32))


@pytest.mark.parametrize(
    ("array", "method", "size"),
    [
        (np.float32(3), "constant", 6),
        (np.zeros((3, 0), np.float32), "raw", 4),
        (np.zeros((784, 300), np.float32), "constant", 10),
        (np.array([1.5, -2], np.float32), "raw", 11),
        (np.eye(64, dtype=np.bool_), "sparse constant", None),
        (np.arange(4096, dtype=np.float32) // 512, "planes", None),
    ],
)
def test_the_method_chosen(array, method, size):
    found, length, _ = round_trip(array)
    assert found == method
    assert size is None or length == size


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_pruned_and_clustered_weights_cost_their_entropy():
    rng = np.random.default_rng(0)
    mask = rng.random((784, 300)) < 0.055
    book = np.sort(noise(16))
    index = np.clip(np.rint(rng.normal(7.5, 4, mask.shape)), 0, 15).astype(int)
    weight = np.where(mask, book[index], np.float32(0))
    method, size, spent = round_trip(weight)
    assert method == "sparse codebook"
    kept = int(mask.sum())
    bound = mask_entropy_bits(mask.size, kept) + symbol_entropy_bits(index[mask])
    # 1.2 % for whole bits, and codebook, tables and header beside them.
    assert 8 * size < 1.012 * bound + spent["codebook"] + spent["tables"] + 100
    assert spent["codebook"] + spent["tables"] + spent["header"] < 8 * 110


def test_codebook_hint_gives_what_the_values_give():
    index = np.random.default_rng(0).integers(0, 6, (30, 40))
    values = np.array([0.0, 0.5, 0.5, -0.0, -2, 7, 8], np.float32)
    weight = values[index]
    assert encode_tensor(weight, hint=Codebook(index, values)) == encode_tensor(weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_grid_hint(dtype):
    codes = np.clip(np.rint(noise((60, 50)) * 3), -8, 7).astype(np.int8)
    scale = np.abs(noise(50)) + np.float32(0.01)
    weight = codes.astype(np.float64) * scale
    if dtype != "float64":
        weight = weight.astype(np.float32)
    weight = weight.astype(dtype_of(dtype))
    method, size, _ = round_trip(weight, Grid(codes, scale))
    assert method == "grid"
    assert 8 * size < 4 * codes.size + 32 * 50 + 300


def test_sparse_grid_hint():
    codes = np.clip(np.rint(noise((300, 50)) * 0.5), -8, 7).astype(np.int8)
    codes[:, 1:][np.random.default_rng(0).random((300, 49)) < 0.8] = 0
    scale = np.abs(noise(50)) + np.float32(0.01)
    method, old, _ = round_trip(codes * scale, Grid(codes, scale), version=1)
    assert method == "sparse grid"
    method, new, _ = round_trip(codes * scale, Grid(codes, scale))
    assert "grid" in method
    assert new < old


def test_scales_take_two_bytes_where_these_hold_them():
    codes = np.clip(np.rint(noise((60, 50)) * 3), -8, 7).astype(np.int8)
    long = np.abs(noise(50)) + np.float32(0.01)
    short = long.astype(ml_dtypes.bfloat16).astype(np.float32)
    _, before, _ = round_trip(codes * long, Grid(codes, long))
    data = encode_tensor(codes * short, hint=Grid(codes, short))
    assert len(data) <= before - 2 * 50
    source = huffman_file.Bytes(data)
    assert huffman_file.tensor(source).tobytes() == (codes * short).tobytes()
    # No bits of a scale are lost that bfloat16 does not have, or cannot reach.
    for scale in (np.full(50, 1 + 2**-8, "f4"), np.full(50, 1e300)):
        round_trip(codes * scale, Grid(codes, scale))


def test_grids_are_found_without_a_hint():
    weight = noise((64, 32))
    scale = np.abs(weight).max(axis=0) / np.float32(127)
    codes = np.rint(weight / scale).astype(np.int8)
    assert round_trip(codes * scale)[0] == "grid"
    scale = np.abs(weight).max() / np.float32(7)
    codes = np.rint(weight / scale).astype(np.int8)
    method, size, _ = round_trip(codes * scale)
    assert "grid" in method
    assert size < weight.size / 2


@pytest.mark.parametrize("shape", [(3, 3, 4, 8), (5, 6, 16)])
def test_grids_of_kernels_have_a_scale_for_each_output(shape):
    weight = noise(shape)
    scale = np.abs(weight).max(axis=tuple(range(len(shape) - 1))) / np.float32(127)
    codes = np.rint(weight / scale).astype(np.int8)
    assert round_trip(codes * scale)[0] == "grid"


@pytest.mark.parametrize(
    "hint",
    [
        Codebook(np.zeros((8, 9), int), np.ones(3, np.float32)),
        Codebook(np.zeros((8, 8), int), np.ones(3, np.float32)),
        Codebook(np.full((8, 8), 3), np.ones(3, np.float32)),
        Codebook(np.full((8, 8), -1), np.ones(3, np.float32)),
        Codebook(np.zeros((8, 8), int), np.ones(3)),
        Codebook(np.zeros((8, 8)), np.ones(3, np.float32)),
        Grid(np.zeros((8, 9), int), np.float32(1)),
        Grid(np.zeros((8, 8), int), np.float32(1)),
        Grid(np.zeros((8, 8)), np.float32(1)),
        Grid(np.zeros((8, 8), int), np.ones((2, 8, 8), np.float32)),
        Grid(np.zeros((8, 8), int), np.ones(7, np.float32)),
        Grid(np.arange(64).reshape(8, 8) * 2000, np.float32(1)),
        Grid(np.zeros((8, 8), int), np.int32(1)),
    ],
)
def test_hints_that_do_not_hold_are_ignored(hint):
    weight = noise((8, 8))
    assert encode_tensor(weight, hint=hint) == encode_tensor(weight)


def test_refusals():
    with pytest.raises(ConfigError, match="dtype complex64 cannot be stored"):
        encode_tensor(np.zeros(3, np.complex64))
    with pytest.raises(ConfigError, match="up to 15 dimensions"):
        encode_tensor(np.zeros((1,) * 16))
    with pytest.raises(ConfigError, match=r"codec must be one of.*Received: 'zip'"):
        get({"codec": "zip"})


def test_bool_bytes_are_checked():
    with pytest.raises(FormatError, match="a bool array holds the byte 2"):
        Tensor().decode(b"\x10\x01\x00\x02")


SCALE = b"\x0b\x02\x00\x00\x80\x3f"  # the float32 scalar 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the header of a tensor needs 1 bytes"),
        (b"\x0f\x00", "dtype number 15"),
        (b"\x0b\x7e", "method 126"),
        (b"\x0b\x04\x0b\x04", "method 4 .* not know here"),
        (b"\x1b" + b"\xff" * 8 + b"\x7f\x00", "would take .* pass a larger max_bytes"),
        (b"\x1b" + b"\xff" * 9, "longer than 9 bytes"),
        (b"\x1b" + b"\x80" * 9 + b"\x01", "longer than 9 bytes"),
        (b"\x2b\xff\xff\xff\xff\x7f\x00\x00", "would take"),
        (b"\x1b\x05\x00", "the values needs 20 bytes, but only 0 are left"),
        (b"\x1b\x05\x03\x00", "a codebook of 0 values"),
        # Two values, whose index stream holds the symbol 2 alone.
        (b"\x18\x05\x03\x04" + b"\x01" * 16 + b"\xb8", "index 2 into a codebook of 2"),
        (b"\x1b\x05\x01\x03\x07\x00\x00", "deflate stream of the values is broken"),
        (b"\x1b\x05\x01\x02\x03\x00", "should be 20 bytes in one deflate"),
        # Half a million bools in 12 bytes, whose gaps would need 8 bytes each.
        (
            b"\x10\xa0\xc2\x1e\x82\x03\xa0\xc2\x1e\xe0\x01",
            "decoding the gaps would take 4000000 bytes",
        ),
        (b"\x11\x05\x04" + SCALE + b"\x00", "a grid of shape"),
        (b"\x1b\x05\x04\x1b\x02\x02\x00\x00\x80\x3f\x00", "scale of shape"),
    ],
)
def test_damaged_records(data, message):
    with pytest.raises(FormatError, match=message):
        Tensor().decode(data, max_bytes=10**6)


@settings(max_examples=200)
@given(st.integers(0, 5), st.data())
def test_altered_records_raise_nothing_else(case, data):
    weight = noise((20, 30), seed=case)
    if case % 2:
        weight = np.where(weight > 1, np.round(weight), np.float32(0))
    codes = np.rint(weight * 3).astype(int)
    hint = Grid(codes, np.full(30, 0.3, np.float32))
    if case > 3:
        weight = (codes * hint.scale).astype(np.float32)
    record = bytearray(encode_tensor(weight, hint=hint))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(record) - 1))
        record[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(record)))
    for damaged in (record, record[:cut]):
        try:
            array = Tensor().decode(bytes(damaged), max_bytes=10**6)
        except FormatError:
            continue
        assert array.nbytes <= 10**6


def test_configs_build_the_codec_again():
    for config in (
        {"codec": "tensor", "version": 1},
        {"codec": "huffman", "limit": 9},
        {"codec": "gaps", "limit": 16},
        {"codec": "deflate", "level": 3},
    ):
        assert get(config).config() == config


def test_bfloat16_is_the_type_keras_uses():
    assert dtype_of("bfloat16") == ml_dtypes.bfloat16


def test_values_that_nearly_all_differ_get_no_codebook():
    rng = np.random.default_rng(0)
    sparse = rng.normal(size=(100, 100)).astype("float32")
    sparse[rng.random((100, 100)) < 0.7] = 0
    data = encode_tensor(sparse)
    found = decode_tensor(Reader(data, max_bytes=2**20))
    assert found.method == "sparse bytes"
    assert found.array.tobytes() == sparse.tobytes()
    for steps, worth in ((np.ones(2047), True), (rng.integers(1, 2**20, 2047), False)):
        book = np.append(0, np.cumsum(steps)).astype("uint32")
        all_once = np.append(book, book[:1])
        values = Values(all_once, book, np.zeros(0), book.dtype)
        assert has_codebook(values) == worth
