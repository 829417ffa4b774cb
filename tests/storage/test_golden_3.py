"""Records of version 3 decode forever, by the package and by a decoder of its own."""

import importlib.util
import pathlib

import numpy as np
import pytest

from keras_dlopt.codecs import Rans, Tensor
from reference import huffman_file

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SPEC = importlib.util.spec_from_file_location("make_v3", GOLDEN / "make_v3.py")
make_v3 = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_v3)


@pytest.fixture(autouse=True)
def _fresh_keras_state():
    """No Keras here."""


@pytest.mark.parametrize("name", list(make_v3.arrays()))
def test_tensors(name, monkeypatch):
    expected = make_v3.arrays()[name]
    data = (GOLDEN / f"v3_tensor_{name}.bin").read_bytes()
    source = huffman_file.Bytes(data)
    found = [Tensor().decode(data), huffman_file.tensor(source)]
    assert source.at == len(data)
    monkeypatch.setenv("KERAS_DLOPT_NO_NUMBA", "1")
    found.append(Tensor().decode(data))
    for one in found:
        assert one.dtype == expected.dtype
        assert one.shape == expected.shape
        assert one.tobytes() == expected.tobytes()


def test_streams():
    data = (GOLDEN / "v3_rans.bin").read_bytes()
    assert np.array_equal(Rans().decode(data), make_v3.symbols())
    source = huffman_file.Bytes(data)
    found = huffman_file.rans_stream(source, source.varint())
    assert found == make_v3.symbols().tolist()
