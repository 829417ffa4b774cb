import ml_dtypes
import numpy as np
import pytest

from keras_dlopt.codecs import Tensor
from keras_dlopt.codecs.entropy import entropy_bits
from keras_dlopt.codecs.reader import Reader
from keras_dlopt.codecs.tensor import decode_tensor
from keras_dlopt.errors import FormatError

# Bits of sign and mantissa, and where the exponent begins.
FLOATS = {"float32": (24, 23, 255), "bfloat16": (8, 7, 255), "float16": (11, 10, 31)}


@pytest.mark.parametrize("dtype", list(FLOATS))
def test_floats_cost_their_exponents(dtype, monkeypatch):
    rest, shift, most = FLOATS[dtype]
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = np.random.default_rng(0).normal(0, 0.05, (300, 400)).astype(kind)
    data = Tensor().encode(array)
    bits = array.reshape(-1).view(f"u{kind.itemsize}").astype(np.int64)
    exponents = entropy_bits(np.bincount(bits >> shift & most))
    # Few patterns are a codebook, which is smaller still.
    assert decode_tensor(Reader(data, max_bytes=2**24)).method in ("bytes", "codebook")
    # 1 % of the exponents' entropy, and a table.
    assert 8 * len(data) - rest * array.size < 1.01 * exponents + 8 * 60
    assert Tensor().decode(data).tobytes() == array.tobytes()
    monkeypatch.setenv("KERAS_DLOPT_NO_NUMBA", "1")
    assert Tensor().encode(array) == data
    assert Tensor().decode(data).tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", ["int64", "float64", "uint16", "float8_e4m3fn"])
def test_other_dtypes(dtype, monkeypatch):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = np.random.default_rng(0).normal(0, 30, 9_000).astype(kind)
    for some in (array, array[:50]):
        data = Tensor().encode(some)
        assert Tensor().decode(data).tobytes() == some.tobytes()
        with monkeypatch.context() as patch:
            patch.setenv("KERAS_DLOPT_NO_NUMBA", "1")
            assert Tensor().decode(data).tobytes() == some.tobytes()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x11\x05\x40\x09", "method 9 for a plane of bytes"),
        (b"\x11\x05\x40", "the method of a plane needs 1 bytes"),
        (b"\x11\x05\x40\x00abc", "a plane needs 5 bytes, but only 3"),
        (b"\x11\x05\x40\x01", "a plane needs 1 bytes, but only 0"),
        # A Huffman stream of the symbol 300 alone.
        (b"\x11\x05\x40\x02\x80\x4b\x60", "a plane of bytes holds 300"),
    ],
)
def test_damage(data, message):
    with pytest.raises(FormatError, match=message):
        Tensor().decode(data)
