"""The short header: what it leaves out comes back, and golden files read forever."""

import hashlib
import importlib.util
import pathlib

import keras
import numpy as np
import pytest
from keras import layers

from keras_dlopt.codecs.container import SHORT, read_container, version_of
from keras_dlopt.storage import ledger_of, load_compressed, save_compressed
from keras_dlopt.storage.contents import read_stored
from keras_dlopt.storage.dictionary import DICTIONARY, SHORT_DICTIONARY
from keras_dlopt.storage.short import lengthen, shorten
from reference import huffman_file, short_header

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SPEC = importlib.util.spec_from_file_location("make_v4", GOLDEN / "make_v4.py")
make_v4 = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_v4)


def test_a_golden_file_reads_forever():
    loaded, expected = load_compressed(GOLDEN / "v4.dlopt"), make_v4.model()
    assert loaded.name == "golden"
    assert loaded.get_config() == expected.get_config()
    for one, other in zip(loaded.weights, expected.weights, strict=True):
        assert one.path == other.path
        assert np.array_equal(np.asarray(one.value), np.asarray(other.value))
    x = np.arange(128, dtype="float32").reshape(2, 8, 8, 1) / 128
    assert np.asarray(loaded(x)).tobytes() == np.asarray(expected(x)).tobytes()


def test_a_decoder_written_from_the_page_reads_it():
    data = (GOLDEN / "v4.dlopt").read_bytes()
    assert version_of(data) == 4
    header, arrays = huffman_file.file(data, DICTIONARY, SHORT_DICTIONARY)
    stored = read_stored(data, max_bytes=10**6)
    assert header == stored.header
    assert [a.shape for a in arrays[:2]] == [(3, 3, 1, 4), (4,)]
    docs = GOLDEN.parents[1] / "docs" / "format.md"
    if docs.exists():
        digest = hashlib.blake2b(SHORT_DICTIONARY, digest_size=8).hexdigest()
        assert digest in docs.read_text()


def test_the_dictionary_never_changes():
    # It is part of the format: every short header was deflated against it.
    digest = hashlib.blake2b(SHORT_DICTIONARY, digest_size=8).hexdigest()
    assert (len(SHORT_DICTIONARY), digest) == (30601, "a74ee1be7eaac5e4")


def sequential():
    kernel = {"kernel_regularizer": "l2", "dtype": "mixed_bfloat16"}
    norm = layers.BatchNormalization(center=False, name="a")
    dense = [layers.Dense(3, use_bias=False, **kernel), norm, layers.Dense(2)]
    return keras.Sequential([keras.Input((4,)), *dense], name="own")


def nested():
    inputs = keras.Input((6,))
    x = keras.Sequential([keras.Input((6,)), layers.Dense(5)], name="in")(inputs)
    x = keras.ops.relu(layers.Dense(5, name="b")(x)) * 2
    return keras.Model(inputs, [layers.LayerNormalization()(x), x])


def words():
    embedding = layers.Embedding(20, 4)
    return keras.Sequential([keras.Input((5,)), embedding, layers.LSTM(3)])


def small(tmp_path, net):
    save_compressed(net, tmp_path / "a.dlopt")
    return (tmp_path / "a.dlopt").read_bytes()


@pytest.mark.parametrize("make", [sequential, nested, words, make_v4.model])
def test_what_is_left_out_comes_back(make, tmp_path):
    net = make()
    data = small(tmp_path, net)
    assert SHORT in read_container(data)
    again = load_compressed(tmp_path / "a.dlopt")
    assert again.get_config() == net.get_config()
    header = read_stored(data, max_bytes=10**6).header
    short = shorten(header)
    assert lengthen(short) == short_header.header(short, DICTIONARY) == header
    rows = ledger_of(tmp_path / "a.dlopt").rows
    assert [r.path for r in rows][: len(net.weights)] == [w.path for w in net.weights]


def test_lenets_are_described_in_tens_of_bytes(tmp_path):
    chain = [layers.Flatten(), layers.Dense(30, "relu"), layers.Dense(10)]
    net = keras.Sequential([keras.Input((28, 28, 1)), *chain])
    assert len(read_container(small(tmp_path, net))[SHORT]) <= 24


def test_values_that_only_look_the_same_are_kept():
    node = {"@": "Dense", "config": {"name": "dense", "trainable": 1, "units": 10.0}}
    header = {"model": node, "paths": []}
    short = shorten(header)
    assert short["model"]["trainable"] == 1
    assert lengthen(short) == header
    assert type(lengthen(short)["model"]["config"]["units"]) is float
    assert type(lengthen(short)["model"]["config"]["trainable"]) is int


def test_headers_that_have_no_short_form():
    node = {"@": "Dense", "config": {"name": "dense"}}
    for header in (
        {"model": node, "paths": [], "same": []},
        {"model": {**node, "config": {"~": 1, "name": "dense"}}, "paths": []},
        {"model": [], "paths": []},
        {"model": {"@": "Sequential", "config": {"layers": [3]}}, "paths": []},
    ):
        assert shorten(header) is None
