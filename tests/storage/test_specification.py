"""The package against a decoder written from docs/format.md alone."""

import pathlib

import numpy as np
import pytest

from keras_dlopt.codecs import Tensor
from keras_dlopt.storage.contents import read_contents
from keras_dlopt.storage.decoding import _bounds
from keras_dlopt.storage.dictionary import DICTIONARY
from reference import huffman_file

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def _fresh_keras_state():
    """No Keras here."""


@pytest.mark.parametrize(
    "path", sorted(GOLDEN.glob("v1_tensor_*.bin")), ids=lambda p: p.stem
)
def test_golden_tensors(path):
    source = huffman_file.Bytes(path.read_bytes())
    found, expected = huffman_file.tensor(source), Tensor().decode(path.read_bytes())
    assert source.at == len(source.data)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def test_golden_file():
    data = (GOLDEN / "v1_model.dlopt").read_bytes()
    header, arrays = huffman_file.file(data, DICTIONARY)
    contents = read_contents(data, max_bytes=10**6)
    assert header["model"] == contents.architecture
    assert header["paths"] == [t.path for t in contents.tensors]
    for found, tensor in zip(arrays, contents.tensors, strict=True):
        assert found.dtype == tensor.array.dtype
        assert found.tobytes() == tensor.array.tobytes()


@pytest.mark.parametrize("density", [0.01, 0.1, 0.4, 0.9])
def test_random_tensors(density):
    rng = np.random.default_rng(0)
    for kind in range(6):
        array = rng.normal(size=(40, 50)).astype("float32" if kind % 2 else "float16")
        if kind > 1:
            array = np.round(array * kind)
        array = np.where(rng.random((40, 50)) < density, array, array.dtype.type(0))
        data = Tensor().encode(array)
        found = huffman_file.tensor(huffman_file.Bytes(data))
        assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int64"])
def test_the_entropy_of_what_is_not_zero(dtype):
    symbols = np.random.default_rng(0).binomial(9, 0.2, 300).astype(dtype)
    if dtype != "uint8":
        symbols -= 3
    zeros, positions, values = _bounds(symbols)
    kept = symbols[symbols != 0]
    p = np.unique(kept, return_counts=True)[1] / kept.size
    assert values == pytest.approx(-kept.size * np.sum(p * np.log2(p)))
    share = kept.size / symbols.size
    mask = -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    assert positions == pytest.approx(symbols.size * mask)
    assert zeros == pytest.approx(1 - share)


def test_the_specification_names_the_dictionary_as_it_is():
    import hashlib

    docs = GOLDEN.parents[1] / "docs" / "format.md"
    if not docs.exists():
        pytest.skip("the docs are not part of this installation")
    digest = hashlib.blake2b(DICTIONARY, digest_size=8).hexdigest()
    text = docs.read_text()
    assert f"{len(DICTIONARY):,} bytes" in text
    assert digest in text
