"""Files made to do harm: each is refused, with the one error kind, before it acts."""

import copy
import json
import tracemalloc

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from keras import layers

from keras_dlopt.codecs.container import (
    HEADER,
    NODE_VALUES,
    SHORT,
    TENSORS,
    read_container,
    write_container,
    write_json,
)
from keras_dlopt.codecs.deflate import write_deflated
from keras_dlopt.codecs.huffman import Huffman
from keras_dlopt.codecs.reader import varint
from keras_dlopt.errors import FormatError
from keras_dlopt.storage import ledger_of, load_compressed, save_compressed
from keras_dlopt.storage.dictionary import DICTIONARY, SHORT_DICTIONARY
from keras_dlopt.storage.header import read_header
from keras_dlopt.storage.short import templates


@pytest.fixture(autouse=True)
def _fresh_keras_state():
    """Names are all explicit here, so the slow reset between tests is not needed."""


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "m.dlopt"
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(4, activation="relu", name="one"),
            layers.Dense(2, name="two"),
        ]
    )
    save_compressed(model, path)
    return path.read_bytes()


def header_of(data):
    return read_header(read_container(data), max_bytes=2**20)


def forged(data, header=None, tensors=None):
    """A file with a valid checksum around altered contents."""
    sections = read_container(data)
    if header is not None:
        sections.pop(SHORT, None)
        sections[HEADER] = write_json(header, dictionary=DICTIONARY)
    if tensors is not None:
        sections[TENSORS] = tensors
    return write_container(sections)


def load(tmp_path, data, **kwargs):
    path = tmp_path / "bad.dlopt"
    path.write_bytes(data)
    return load_compressed(path, **kwargs)


def with_layer(data, layer):
    """The file with its last layer replaced."""
    header = header_of(data)
    header["model"]["config"]["layers"][-1] = layer
    return forged(data, header)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"@": "Lambda", "config": {}}, "'Lambda' cannot .*it holds Python code"),
        ({"@": "__lambda__", "config": {"value": "x"}}, "'__lambda__' cannot"),
        ({"@": "TFSMLayer", "config": {}}, "it loads another file"),
        (
            {"@": "TextVectorization", "config": {"vocabulary": "/etc/passwd"}},
            "vocabulary of 'TextVectorization' is the path of a file",
        ),
        (
            {"@": "IntegerLookup", "config": {"idf_weights": "weights.txt"}},
            "idf_weights of 'IntegerLookup' is the path of a file",
        ),
        ({"@": "utils.get_file", "config": {}}, "'utils.get_file' cannot"),
        ({"@": "os>system", "config": {}}, r"'os>system'.*custom_objects={'system'"),
        ({"@": ">system", "config": {}}, "names 'system', which is neither"),
        ({"@": "keras_dlopt>Missing", "config": {}}, "names 'keras_dlopt>Missing'"),
        ({"@": 7, "config": {}}, "'7' cannot"),
        ({"@": "Dense", "compile_config": {}}, "keys .*compile_config.* no meaning"),
        (
            {"module": "os", "class_name": "system", "config": {}},
            "'system' cannot .* spells out a module",
        ),
        (
            {"module": "keras.utils", "class_name": "get_file", "config": {}},
            "'get_file' cannot",
        ),
        ({"a": [{"class_name": "__lambda__"}]}, "'__lambda__' cannot"),
        ({"@": "function", "config": "get_file"}, "'get_file' cannot .*no activation"),
        ({"@": "function", "config": "deserialize"}, "'deserialize' cannot"),
        ({"@": "function", "config": ["x"]}, "a function is given by its name"),
        ({"@t": 5}, "names no tensor"),
        (
            {"@": "__numpy__", "config": {"dtype": "U999999999", "value": ["x"]}},
            "dtype",
        ),
        ({"@": "__numpy__", "config": 3}, "its dtype is None"),
        ({"@": "Dense", "config": {"units": -3}}, "cannot be rebuilt"),
        (
            {"@": "Dense", "config": {"units": 3, "activation": "no"}},
            "cannot be rebuilt",
        ),
        ({"@": "Dense", "config": 5}, "cannot be rebuilt"),
        ("Dense", "cannot be rebuilt"),
        ({"@": "Dense", "config": {"units": 10**12}}, "needs a variable of shape"),
        ({"@": "Dense", "config": {"units": 10**9}}, "needs a variable of shape"),
        ({"@": "Dense", "config": {"units": 3}}, "other variables"),
    ],
)
def test_layers(layer, message, original, tmp_path):
    with pytest.raises(FormatError, match=message):
        load(tmp_path, with_layer(original, layer))


def test_nothing_is_imported(original, tmp_path):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    layer = {"module": "evil_module", "class_name": "Evil", "config": {}}
    for bad in (layer, {"@": "evil_module>Evil"}, {"@": "evil_module.Evil"}):
        with pytest.raises(FormatError, match="Refused"):
            load(tmp_path, with_layer(original, bad))


def test_custom_objects_cannot_be_reached_by_a_refused_name(original, tmp_path):
    bad = with_layer(original, {"@": "Lambda", "config": {}})
    with pytest.raises(FormatError, match="'Lambda' cannot"):
        load(tmp_path, bad, custom_objects={"Lambda": layers.Lambda})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "describes no model"),
        ({"a": 1}, "describes no model"),
        (
            {"@": "Dense", "config": {"units": 2}},
            "describes a Dense, not a keras.Model",
        ),
        ({"@": "Functional", "config": {}}, "cannot be rebuilt"),
    ],
)
def test_models(model, message, original, tmp_path):
    header = header_of(original) | {"model": model}
    with pytest.raises(FormatError, match=message):
        load(tmp_path, forged(original, header))


def test_deep_nesting(original, tmp_path):
    deep = []
    for _ in range(700):
        deep = [deep]
    header = header_of(original)
    header["model"]["config"]["name"] = deep
    with pytest.raises(FormatError):
        load(tmp_path, forged(original, header))


def test_headers(original, tmp_path):
    header = header_of(original)
    for bad in ([], {"model": 1}, header | {"more": 1}):
        with pytest.raises(FormatError, match="its header has other keys"):
            load(tmp_path, forged(original, bad))
    for paths in (None, ["x"], [1, 2, 3, 4]):
        with pytest.raises(FormatError, match="4 variables and not as many paths"):
            load(tmp_path, forged(original, header | {"paths": paths}))


def test_tensor_sections(original, tmp_path):
    tensors = read_container(original)[TENSORS]
    with pytest.raises(FormatError, match="1 bytes follow the last variable"):
        load(tmp_path, forged(original, tensors=tensors + b"\0"))
    with pytest.raises(FormatError, match="9223372036854775807 variables"):
        load(tmp_path, forged(original, tensors=varint(2**63 - 1)))
    huge = b"\x04" + b"\x2b" + 2 * varint(2**31 - 1) + b"\x02" + bytes(4)
    with pytest.raises(FormatError, match=r"would take .* pass a larger max_bytes"):
        load(tmp_path, forged(original, tensors=huge))


def test_a_file_of_max_bytes_is_opened_and_none_that_is_larger(original, tmp_path):
    with pytest.raises(FormatError, match="is larger than max_bytes"):
        load(tmp_path, original, max_bytes=len(original) - 1)
    with pytest.raises(FormatError, match="would take"):
        load(tmp_path, original, max_bytes=len(original))


def test_max_bytes(original, tmp_path):
    with pytest.raises(FormatError, match=r"is larger than max_bytes=50\. If it comes"):
        load(tmp_path, original, max_bytes=50)
    constant = b"\x04" + b"\x1b" + varint(10**5) + b"\x02" + bytes(4)
    with pytest.raises(FormatError, match="would take 400000 bytes"):
        load(tmp_path, forged(original, tensors=constant), max_bytes=10**5)


def test_a_refused_file_leaves_no_trace(original, tmp_path):
    bad = with_layer(original, {"@": "Dense", "config": {"units": 10**12}})
    before = keras.Variable.__init__
    with pytest.raises(FormatError):
        load(tmp_path, bad)
    assert keras.Variable.__init__ is before
    assert keras.Variable(np.zeros(3)).shape == (3,)


def test_limits_nest():
    from keras_dlopt._compat import limited_variables

    before = keras.Variable.__init__
    with limited_variables(10**6):
        with limited_variables(0):
            with pytest.raises(FormatError, match=r"of shape \(99, 99\), more than"):
                keras.Variable(np.zeros((99, 99)))
        keras.Variable(np.zeros((99, 99)))
        with pytest.raises(FormatError, match=r"weights stored in it \(1000000 elem"):
            keras.Variable("zeros", shape=(10**6,))
    assert keras.Variable.__init__ is before


def test_a_huge_header_is_refused(original, tmp_path):
    header = header_of(original) | {"paths": ["x" * 2**26]}
    with pytest.raises(FormatError, match="the header would take 6711"):
        load(tmp_path, forged(original, header))


def test_a_header_of_many_values_is_refused_before_it_is_parsed(original, tmp_path):
    text = b'{"model":[' + b"[]," * 400_000 + b'[]],"paths":[]}'
    stream = write_deflated(text, dictionary=DICTIONARY)
    sections = {HEADER: varint(len(text)) + stream, TENSORS: varint(0)}
    data = write_container(sections)
    assert len(data) < 2_000
    with pytest.raises(FormatError, match="the 800005 values of the header would take"):
        load(tmp_path, data)


def short_file(text):
    """A file with this text as its short header."""
    stream = write_deflated(text, dictionary=SHORT_DICTIONARY)
    return write_container({SHORT: varint(len(text)) + stream, TENSORS: varint(0)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[]", "short header means nothing"),
        (b'{"paths":[]}', "short header means nothing .*model"),
        (b'{"model":{"~":"Lambda"}}', "short header means nothing .*Lambda"),
        (b'{"model":{"~":["Dense"]}}', "short header means nothing"),
        (b'{"model":{"~":"Sequential"}}', "short header means nothing .*layers"),
        (b'{"model":{"~":"Sequential","layers":[]}}', "short header means nothing"),
        (b'{"model":{"~":"Sequential","layers":[5]}}', "short header means nothing"),
        (b'{"model":{"~":"Dense","-":["no"]}}', "short header means nothing .*no"),
        (b'{"model":{"~":"Dense","+":[]}}', "short header means nothing"),
        (b'{"model":' + b"[" * 700 + b"]" * 700 + b"}", "damaged"),
        (b'{"model":{"~":"Dense","name":"a"}}', "describes a Dense, not a keras.Model"),
        (
            b'{"model":{"~":"Dense","-":[],"+":{"@":"Lambda"}},"paths":[]}',
            "'Lambda' cannot",
        ),
        (
            b'{"model":{"~":"Dense","+":{"class_name":"os"}},"paths":[]}',
            "spells out a module or class",
        ),
        (b'{"model":{"~":"Dense"},"same":[]}', "short header means nothing .*same"),
        (b'{"model":"' + b"x" * 2**16 + b'"}', "the header would take 6554"),
        (
            b'{"model":[' + b'{"~":"Dense"},' * 3_000 + b"0]}",
            r"the 39\d+ values of the header would take",
        ),
    ],
)
def test_short_headers_are_no_other_door(text, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        load(tmp_path, short_file(text))


def test_a_node_of_a_short_header_stands_for_as_many_values_as_are_counted():
    for config in templates().values():
        text = json.dumps(config)
        assert sum(text.count(mark) for mark in ",[{") + 16 < NODE_VALUES


@pytest.mark.parametrize("max_bytes", [None, 2**24])
def test_memory_is_bounded_by_the_limit(max_bytes, original, tmp_path):
    """Grids of 8-bit floats whose codes all are one symbol: 20 bytes a record."""
    limit = max_bytes or 2**25
    count = limit // 8
    code = Huffman().write(np.full(3, 0))
    scale = bytes([0x0B, 2, 0, 0, 128, 63])
    record = bytes([0x1D]) + varint(count) + b"\x04" + scale + varint(2) + code
    tensors = varint(7) + record * 7
    data = forged(original, {"model": None, "paths": ["p"] * 7}, tensors)
    tracemalloc.start()
    kwargs = {} if max_bytes is None else {"max_bytes": max_bytes}
    with pytest.raises(FormatError, match="describes no model"):
        load(tmp_path, data, **kwargs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * limit


def test_what_a_small_file_may_take_is_told(original, tmp_path):
    constant = b"\x04" + b"\x1b" + varint(2**24) + b"\x02" + bytes(4)
    with pytest.raises(FormatError, match=r"would take 67108864 .* larger max_bytes"):
        load(tmp_path, forged(original, tensors=constant))
    # With the advice followed it is read: that the model is another one is found.
    with pytest.raises(FormatError, match="4 variables and not as many|damaged"):
        load(tmp_path, forged(original, tensors=constant), max_bytes=2**28)


def test_empty_tensors_have_no_values(original, tmp_path):
    empty = b"\x04" + b"\x1b" + varint(0) + b"\x02" + bytes(4)
    with pytest.raises(FormatError, match=r"an empty tensor of shape \(0,\) with"):
        load(tmp_path, forged(original, tensors=empty))


def test_every_altered_byte_and_every_cut(original, tmp_path):
    path = tmp_path / "bad.dlopt"
    rng = np.random.default_rng(0)
    for at in range(len(original)):
        damaged = bytearray(original)
        damaged[at] ^= int(rng.integers(1, 256))
        for data in (bytes(damaged), original[:at]):
            path.write_bytes(data)
            with pytest.raises(FormatError):
                ledger_of(path)


def leaves(tree, found):
    """Every (container, key) in a tree of dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        found.append((tree, key))
        if isinstance(value, dict | list):
            leaves(value, found)
    return found


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**13),
    st.floats(),
    st.sampled_from(["relu", "Dense", "one", "mixed_bfloat16", "", "__main__"]),
    st.just([]),
    st.just({}),
    st.just({"@": "Dropout", "config": {"rate": 0.5}}),
    st.just({"@t": ["one", 0, 0]}),
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_altered_descriptions_raise_nothing_else(original, tmp_path, data):
    header = copy.deepcopy(header_of(original))
    tree, key = data.draw(st.sampled_from(leaves(header, [])))
    tree[key] = data.draw(VALUES)
    try:
        model = load(tmp_path, forged(original, header))
    except FormatError:
        return
    assert isinstance(model, keras.Model)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_altered_tensors_raise_nothing_else(original, tmp_path, data):
    tensors = bytearray(read_container(original)[TENSORS])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(tensors) - 1))
        tensors[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "bad.dlopt"
    path.write_bytes(forged(original, tensors=bytes(tensors)))
    try:
        ledger_of(path, max_bytes=10**6)
    except FormatError:
        return
