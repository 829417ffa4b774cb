"""Arrays that a file holds once: bit-exact, and no way in for hostile headers."""

import pathlib

import numpy as np
import pytest

from keras_dlopt.codecs.container import (
    HEADER,
    TENSORS,
    read_container,
    read_json,
    version_of,
    write_container,
    write_json,
)
from keras_dlopt.errors import FormatError
from keras_dlopt.storage.contents import SavedState, read_contents, write_contents
from keras_dlopt.storage.dictionary import DICTIONARY
from keras_dlopt.storage.repeats import repeats
from reference import huffman_file

A = np.random.RandomState(0).randn(6, 9).astype("float32")
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def _fresh_keras_state():
    """No Keras here."""


def state():
    arrays = [A, A[0].copy(), A.copy(), A.T.copy(), -A, np.zeros((6, 9), "float32"), A]
    return SavedState([f"w{i}" for i in range(7)], arrays, 7, 7)


def test_what_is_equal_is_stored_once_and_read_again():
    data = write_contents({"m": 1}, state(), {}.get)
    assert version_of(data) == 3
    contents = read_contents(data, max_bytes=10**6)
    for tensor, array in zip(contents.tensors, state().arrays, strict=True):
        assert tensor.array.tobytes() == array.tobytes()
        assert tensor.array.shape == array.shape
    methods = [t.method for t in contents.tensors]
    assert methods[2:4] == ["same as w0", "transpose of w0"]
    assert methods[6] == "same as w0"
    assert "as w" not in methods[4] + methods[5]


def test_only_bits_count_and_small_ones_are_left():
    zero = np.linspace(0, 1, 40).reshape(5, 8).astype("float32")
    minus = zero.copy()
    minus[0, 0] = -0.0
    assert repeats([zero, minus]) == {}
    nan = zero.copy()
    nan[2, 2] = np.nan
    assert repeats([nan, nan.copy()]) == {1: (0, 0)}
    assert repeats([zero[0, :4], zero[0, :4]]) == {}
    assert repeats([np.ones(99), np.ones(99)]) == {}
    assert repeats([zero, zero.astype("float64")]) == {}


def test_a_decoder_written_from_the_page_reads_it():
    header, arrays = huffman_file.file((GOLDEN / "v3.dlopt").read_bytes(), DICTIONARY)
    assert header == {
        "model": {"m": 1},
        "paths": [f"w{i}" for i in range(7)],
        "same": [[2, 0, 0], [3, 0, 1], [6, 0, 0]],
    }
    for found, array in zip(arrays, state().arrays, strict=True):
        assert found.tobytes() == array.tobytes()
    contents = read_contents((GOLDEN / "v3.dlopt").read_bytes(), max_bytes=10**6)
    assert [t.array.tobytes() for t in contents.tensors] == [
        a.tobytes() for a in state().arrays
    ]


@pytest.mark.parametrize(
    "same",
    [
        [[2, 0, 0], [3, 0, 1], [6, 2, 0]],  # of a repeat
        [[2, 0, 0], [3, 0, 1], [6, 6, 0]],
        [[2, 0, 0], [3, 0, 1], [6, 7, 0]],
        [[2, 0, 0], [3, 0, 1], [2, 0, 0]],
        [[2, 0, 0], [3, 0, 1], [6, -1, 0]],
        [[2, 0, 0], [3, 0, 1], [6, 0, 2]],
        [[2, 0, 0], [3, 0, 1], [6, 1, 1]],  # no matrix
        [[2, 0, 0], [3, 0, 1], [True, 0, 0]],
        [[2, 0, 0], [3, 0, 1], "6"],
        {"2": 0},
        None,
    ],
)
def test_a_header_that_cannot_be_is_refused(same):
    data = write_contents({"m": 1}, state(), {}.get)
    sections = read_container(data)
    header = read_json(sections[HEADER], max_bytes=10**6, dictionary=DICTIONARY)
    text = write_json(header | {"same": same}, dictionary=DICTIONARY)
    bad = write_container({HEADER: text, TENSORS: sections[TENSORS]}, version=3)
    with pytest.raises(FormatError, match="header gives impossible"):
        read_contents(bad, max_bytes=10**6)


def test_what_repeats_take_is_counted():
    data = write_contents({"m": 1}, state(), {}.get)
    with pytest.raises(FormatError, match="Refused: .* would take"):
        read_contents(data, max_bytes=1000)
    sections = read_container(data)
    for version in (1, 2):
        with pytest.raises(FormatError, match="its header has other keys"):
            read_contents(write_container(sections, version=version), max_bytes=10**6)
