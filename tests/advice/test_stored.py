"""Codecs and compressed files: what refused arrays, models and files are told to do."""

import ml_dtypes
import numpy as np
import pytest
from keras import Input, Model, Sequential, Variable, layers, saving

from keras_dlopt import codecs, config, load_compressed, save_compressed
from keras_dlopt._compat import limited_variables
from keras_dlopt.codecs.bits import BitReader, BitWriter
from keras_dlopt.codecs.container import (
    HEADER,
    TENSORS,
    checksum,
    read_container,
    write_container,
    write_json,
)
from keras_dlopt.codecs.huffman_table import MAX_ALPHABET, write_lengths
from keras_dlopt.codecs.reader import varint
from keras_dlopt.config import decode, encode
from keras_dlopt.storage import CompressedFile
from keras_dlopt.storage.dictionary import DICTIONARY
from keras_dlopt.storage.header import read_header
from keras_dlopt.storage.hooks import check_file_name
from keras_dlopt.transforms.prune import Score

advice = pytest.mark.advice


def small():
    return Sequential([Input((3,)), layers.Dense(2, name="d")], name="m")


@pytest.fixture
def path(tmp_path):
    save_compressed(small(), tmp_path / "m.dlopt")
    return tmp_path / "m.dlopt"


@advice("storage/delta.py", "The file holds the difference to another model.")
@advice("storage/delta.py", "The file is the difference to another base:")
@advice("storage/delta.py", "Leave base out.")
def test_files_that_are_differences(told, path, tmp_path):
    base, own, apart = small(), small(), tmp_path / "apart.dlopt"
    kernel, bias = base.get_weights()
    own.set_weights([kernel, bias + 1])
    other = small()
    other.set_weights([kernel + 1, bias])
    save_compressed(own, apart, base=base)
    for file, given in ((apart, None), (apart, other), (path, base)):
        with told():
            load_compressed(file, base=given)
    loaded = load_compressed(apart, base=base)
    save_compressed(loaded, tmp_path / "whole.dlopt")
    for made in (loaded, load_compressed(tmp_path / "whole.dlopt")):
        for one, two in zip(made.get_weights(), own.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)
    assert load_compressed(path).count_params() == 8


def signed(body):
    return body + checksum(body)


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(
            b"PK\x03\x04" + bytes(30),
            marks=advice(
                "codecs/container.py", "Pass a file written by save_compressed."
            ),
        ),
        pytest.param(
            signed(b"\x89DLO\x09"),
            marks=advice(
                "codecs/container.py", "versions {} to {}. Update keras-dlopt"
            ),
        ),
        pytest.param(
            signed(b"\x89DLO\x01\x07\x00"),
            marks=advice("codecs/container.py", "out of order. Update keras-dlopt"),
        ),
        pytest.param(
            b"\x89DLO\x01",
            marks=advice("codecs/reader.py", "Restore the file from a copy or save it"),
        ),
    ],
)
def test_files_that_are_not_whole(told, path, damaged):
    other = path.with_name("bad.dlopt")
    other.write_bytes(damaged)
    with told():
        load_compressed(other)
    other.write_bytes(path.read_bytes())  # the copy; this version reads it
    assert load_compressed(other).count_params() == 8


@advice("codecs/rans.py", "Use Huffman.")
def test_more_symbols_than_a_table_of_rans_holds(told):
    symbols = np.arange(40_000)
    with told():
        codecs.Rans().encode(symbols)
    stream = codecs.Huffman().encode(symbols)
    assert np.array_equal(codecs.Huffman().decode(stream), symbols)


@advice("codecs/planes.py", "does not know. Update keras-dlopt, or: {}")
def test_planes_that_are_not_known(told):
    tensor = codecs.Tensor()
    array = np.random.default_rng(0).normal(size=9_000).astype("float32")
    whole = tensor.encode(array)
    assert whole[3] == 64
    with told():
        tensor.decode(whole[:4] + b"\x09" + whole[5:])
    assert np.array_equal(tensor.decode(whole), array)


@advice("codecs/record.py", "version does not know. Update keras-dlopt, or: {}")
@advice("codecs/record.py", "does not know here. Update keras-dlopt, or: {}")
@advice("codecs/dtypes.py", "Restore the file from a copy or save it again.")
def test_records_that_are_not_known(told):
    tensor = codecs.Tensor()
    record = bytearray(tensor.encode(np.array([True, False, True, True])))
    whole = bytes(record)
    raw = bytes([record[0], 4, 0, 1, 7, 1, 1])
    for damaged in (b"\x1f" + whole[1:], whole[:2] + b"\x70" + whole[3:], raw):
        with told():
            tensor.decode(damaged)
    assert tensor.decode(whole).tolist() == [True, False, True, True]


@advice("codecs/bits.py", "in the middle of a code. Restore it from a copy")
@advice("codecs/bits.py", "other than zero. Restore it from a copy")
def test_bits_that_are_not_whole(told):
    writer = BitWriter()
    writer.write([5, 2], [3, 2])
    data = writer.to_bytes()
    with told():
        BitReader(data[:0]).read(3)
    reader = BitReader(bytes([data[0] | 1]))
    reader.read(5)
    with told():
        reader.finish()
    reader = BitReader(data)
    assert [reader.read(3), reader.read(2), reader.finish()] == [5, 2, 1]


@advice("codecs/dtypes.py", "Cast the array first.")
@advice("codecs/record.py", "Reshape it first.")
def test_arrays_that_cannot_be_stored(told):
    tensor, values = codecs.Tensor(), np.arange(6).astype(ml_dtypes.int4)
    with told():
        tensor.encode(values)
    assert tensor.decode(tensor.encode(values.astype("int8"))).tolist() == [*range(6)]
    deep = np.zeros((1,) * 16)
    with told():
        tensor.encode(deep)
    assert tensor.decode(tensor.encode(deep.reshape(1))).tolist() == [0]


@advice("codecs/gaps.py", "Pass np.flatnonzero(mask).")
def test_positions_that_do_not_rise(told):
    mask = np.array([0, 1, 1, 0, 1], bool)
    with told():
        codecs.Gaps().encode([2, 1, 4])
    data = codecs.Gaps().encode(np.flatnonzero(mask))
    assert codecs.Gaps().decode(data, size=5).tolist() == [1, 2, 4]


@advice("codecs/huffman_table.py", "Split large symbols first.")
def test_symbols_that_are_too_large(told):
    used = np.zeros(MAX_ALPHABET + 1, bool)
    used[-1] = True
    with told():
        write_lengths(BitWriter(), np.ones(used.size, int), used)
    split = np.concatenate([[MAX_ALPHABET - 1], [1]])  # an escape, and what is left
    huffman = codecs.Huffman()
    assert huffman.decode(huffman.encode(split)).tolist() == split.tolist()


@advice("codecs/__init__.py", "Pass what the config() of a codec returned.")
def test_configs_of_no_codec(told):
    with told():
        codecs.get({"codec": "zip"})
    assert codecs.get(codecs.Huffman(limit=9).config()) == codecs.Huffman(limit=9)


class Unregistered(Score):
    pass


@saving.register_keras_serializable("my_package")
class Registered(Score):
    pass


@advice("config.py", "Decorate it with @keras.saving.register_keras_serializable('my_")
def test_classes_that_are_not_registered(told):
    with told():
        encode(Unregistered())
    assert isinstance(decode(encode(Registered())), Registered)


@advice("config.py", "Import the module that defines it first")
def test_classes_that_are_not_known(told, monkeypatch):
    with told():
        decode({"class": "late_package>Late", "config": {}})
    late = saving.register_keras_serializable("late_package")(
        type("Late", (Score,), {})
    )
    assert isinstance(decode({"class": "late_package>Late", "config": {}}), late)
    assert config.encode(late())["class"] == "late_package>Late"


def with_layer(path, layer):
    """The file with its last layer replaced, the checksum made good."""
    sections = read_container(path.read_bytes())
    header = read_header(sections, max_bytes=2**20)
    sections = {TENSORS: sections[TENSORS]}
    header["model"]["config"]["layers"][-1] = layer
    sections[HEADER] = write_json(header, dictionary=DICTIONARY)
    other = path.with_name("bad.dlopt")
    other.write_bytes(write_container(sections))
    return other


@saving.register_keras_serializable("my_package")
class Twice(layers.Layer):
    def call(self, x):
        return 2 * x


@advice(
    "storage/allowed.py", "Write a layer class instead and pass it as custom_objects"
)
def test_layers_of_code(told, path):
    with told():
        load_compressed(with_layer(path, {"@": "Lambda", "config": {}}))
    model = Sequential([Input((3,)), Twice()])
    save_compressed(model, path)
    again = load_compressed(path, custom_objects={"Twice": Twice})
    assert np.asarray(again(np.ones((1, 3)))).tolist() == [[2, 2, 2]]


@advice("storage/allowed.py", "Give the layer the list itself: {}=[...].")
def test_vocabularies_that_are_files(told, path):
    named = {"@": "StringLookup", "config": {"vocabulary": "/etc/passwd"}}
    with told():
        load_compressed(with_layer(path, named))
    lookup = layers.StringLookup(vocabulary=["a", "b"])
    save_compressed(Sequential([Input((1,), dtype="string"), lookup]), path)
    (found,) = load_compressed(path).layers
    assert found.get_vocabulary() == ["[UNK]", "a", "b"]


@advice("storage/architecture.py", "Pass a file written by save_compressed.")
def test_files_of_a_layer(told, path):
    sections = read_container(path.read_bytes())
    header = read_header(sections, max_bytes=2**20)
    sections = {TENSORS: sections[TENSORS]}
    header["model"] = header["model"]["config"]["layers"][-1]
    sections[HEADER] = write_json(header, dictionary=DICTIONARY)
    bad = path.with_name("bad.dlopt")
    bad.write_bytes(write_container(sections))
    with told():
        load_compressed(bad)
    assert load_compressed(path).name == "m"


@advice("storage/hooks.py", "Pass a file written by save_compressed.")
def test_names_that_lead_elsewhere(told):
    with told():
        check_file_name("../secret")
    assert check_file_name("vocabulary.txt") == "vocabulary.txt"


@advice("_compat/formats.py", "Restore the file from a copy or save it again.")
def test_models_larger_than_their_file(told, path):
    with limited_variables(0), told():
        Variable(np.zeros((99, 99)))
    tensors = read_container(path.read_bytes())[TENSORS]
    assert tensors[:1] == varint(2)
    assert load_compressed(path).count_params() == 8


@advice(
    "storage/saving.py", "Wrap a layer as keras.Sequential([keras.Input(shape), lay"
)
@advice("storage/saving.py", "Call it on a batch, or model.build(input_shape), first.")
def test_what_is_no_built_model(told, tmp_path):
    path, layer = tmp_path / "m.dlopt", layers.Dense(2)
    with told():
        save_compressed(layer, path)
    save_compressed(Sequential([Input((3,)), layer]), path)
    assert load_compressed(path).count_params() == 8
    for build in (lambda m: m(np.ones((1, 3))), lambda m: m.build((None, 3))):
        model = Sequential([layers.Dense(2)])
        with told():
            save_compressed(model, path)
        build(model)
        save_compressed(model, path)
        assert load_compressed(path).count_params() == 8


class Undescribed(layers.Layer):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, x):
        return self.factor(x)


@saving.register_keras_serializable("my_package")
class Described(layers.Layer):
    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@advice("storage/saving.py", "Give its classes get_config(), and write functions as l")
def test_models_without_a_config(told, tmp_path):
    path = tmp_path / "m.dlopt"
    with told():
        save_compressed(Sequential([Input((3,)), Undescribed(lambda x: 2 * x)]), path)
    save_compressed(Sequential([Input((3,)), Described(2)]), path)
    again = load_compressed(path, custom_objects={"Described": Described})
    assert isinstance(again, Model)
    assert np.asarray(again(np.ones((1, 3)))).tolist() == [[2, 2, 2]]


@advice("storage/folded.py", "Save it with fold=False.")
def test_nothing_to_fold(told, tmp_path):
    with told():
        save_compressed(small(), tmp_path / "f.dlopt", fold=True)
    save_compressed(small(), tmp_path / "f.dlopt", fold=False)


@advice("storage/saving.py", "Pass one of the two.")
def test_hints_beside_folding(told, tmp_path):
    x = inputs = Input((3,))
    x = layers.BatchNormalization()(layers.Dense(2)(x))
    model = Model(inputs, layers.Dense(2)(x))
    kernel = np.zeros((3, 2), "float32")
    model.layers[1].kernel.assign(kernel)
    hints = {0: codecs.Grid(kernel.astype("int64"), np.float32(1))}
    with told():
        save_compressed(model, tmp_path / "f.dlopt", hints=hints, fold=True)
    save_compressed(model, tmp_path / "f.dlopt", hints=hints)
    save_compressed(model, tmp_path / "f.dlopt", fold=True)


@advice("storage/opened.py", "Pass the path of a file that exists.")
def test_opening_nothing(told, path, tmp_path):
    with told():
        CompressedFile(tmp_path / "none.dlopt")
    CompressedFile(path).close()


@advice("storage/opened.py", "Read inside the with block, or open it again.")
@advice("storage/opened.py", "Pass one of names, such as")
def test_reading_one_array(told, tmp_path):
    kernel = np.random.default_rng(0).normal(size=(300, 300)).astype("float32")
    model = Sequential([Input((300,)), layers.Dense(300, name="d")], name="m")
    model.layers[0].set_weights([kernel, np.zeros(300, "float32")])
    save_compressed(model, tmp_path / "large.dlopt")
    with CompressedFile(tmp_path / "large.dlopt") as file:
        with told():
            file.read("nothing")
        assert np.array_equal(file.read(file.names[0]), kernel)
        assert np.array_equal(file.read(0), kernel)
    with told():
        file.read(0)
    with CompressedFile(tmp_path / "large.dlopt") as file:
        assert np.array_equal(file.read(0), kernel)


@advice("storage/opened.py", "Open it again.")
def test_a_file_cut_while_open(told, tmp_path):
    kernel = np.random.default_rng(0).normal(size=(300, 300)).astype("float32")
    model = Sequential([Input((300,)), layers.Dense(300, name="d")], name="m")
    model.layers[0].set_weights([kernel, np.zeros(300, "float32")])
    path = tmp_path / "large.dlopt"
    save_compressed(model, path)
    whole = path.read_bytes()
    with CompressedFile(path) as file:
        path.write_bytes(whole[:5000])
        with told():
            file.read(0)
    path.write_bytes(whole)
    with CompressedFile(path) as file:
        assert np.array_equal(file.read(0), kernel)
