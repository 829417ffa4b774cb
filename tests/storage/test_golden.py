"""Files of version 1 decode forever. If one of these fails, the reader is wrong."""

import hashlib
import importlib.util
import pathlib

import numpy as np
import pytest

from keras_dlopt.codecs import Gaps, Grid, Huffman, Tensor
from keras_dlopt.storage import ledger_of, load_compressed
from keras_dlopt.storage.dictionary import DICTIONARY

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SPEC = importlib.util.spec_from_file_location("make_v1", GOLDEN / "make_v1.py")
make_v1 = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_v1)


@pytest.mark.parametrize("name", list(make_v1.arrays()))
def test_tensors(name):
    expected = np.asarray(make_v1.arrays()[name])
    found = Tensor().decode((GOLDEN / f"v1_tensor_{name}.bin").read_bytes())
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", list(make_v1.arrays()))
def test_tensors_are_written_as_they_were(name):
    codes = make_v1.codes().get(name)
    hint = None if codes is None else Grid(codes, make_v1.SCALE)
    found = Tensor(version=1).encode(make_v1.arrays()[name], hint=hint)
    assert found == (GOLDEN / f"v1_tensor_{name}.bin").read_bytes()


def test_streams():
    symbols = Huffman().decode((GOLDEN / "v1_huffman.bin").read_bytes())
    assert np.array_equal(symbols, np.arange(600) % 17 * (np.arange(600) % 3))
    positions = Gaps().decode((GOLDEN / "v1_gaps.bin").read_bytes(), size=2000)
    assert np.array_equal(positions, np.arange(40) ** 2)


def test_model():
    loaded = load_compressed(GOLDEN / "v1_model.dlopt")
    expected = make_v1.model()
    assert loaded.name == "golden"
    for one, other in zip(loaded.weights, expected.weights, strict=True):
        assert one.path == other.path
        assert np.array_equal(np.asarray(one.value), np.asarray(other.value))
    x = np.arange(128, dtype="float32").reshape(2, 8, 8, 1) / 128
    assert np.asarray(loaded(x)).tobytes() == np.asarray(expected(x)).tobytes()
    rows = {row.path: row for row in ledger_of(GOLDEN / "v1_model.dlopt").rows}
    assert rows["conv/kernel"].shape == (3, 3, 1, 4)


def test_the_dictionary_never_changes():
    # It is part of the format: every file of version 1 was deflated against it.
    digest = hashlib.blake2b(DICTIONARY, digest_size=8).hexdigest()
    assert (len(DICTIONARY), digest) == (29377, "0e9e08ac9c3f55c8")
