"""Files that are the difference to another model."""

import importlib.util
import pathlib

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import layers

from keras_dlopt.codecs.container import (
    HEADER,
    SHORT,
    TENSORS,
    limit_of,
    read_container,
    version_of,
    write_container,
    write_json,
)
from keras_dlopt.errors import ConfigError, FormatError
from keras_dlopt.storage import (
    CompressedFile,
    delta,
    ledger_of,
    load_compressed,
    save_compressed,
)
from keras_dlopt.storage.contents import SavedState, read_contents, write_contents
from keras_dlopt.storage.dictionary import DICTIONARY, SHORT_DICTIONARY
from keras_dlopt.storage.header import read_header
from reference import huffman_file

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SPEC = importlib.util.spec_from_file_location("make_v5", GOLDEN / "make_v5.py")
make_v5 = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_v5)
DTYPES = ["float32", "float16", "bfloat16", "float64", "int8", "uint16", "bool"]


def net():
    return keras.Sequential(
        [
            keras.Input((10,), name="x"),
            layers.Dense(40, name="a"),
            layers.BatchNormalization(name="n"),
            layers.Dense(30, name="b"),
            layers.Dense(2, name="c"),
        ],
        name="m",
    )


@pytest.fixture(scope="module")
def pair():
    """A model, and one fine-tuned from it: a layer changed, a head that is new."""
    keras.utils.set_random_seed(0)
    base, tuned = net(), net()
    tuned.set_weights(base.get_weights())
    rng = np.random.default_rng(0)
    kernel = tuned.get_layer("b").kernel
    kernel.assign(kernel * (1 + 1e-4 * rng.normal(size=kernel.shape)))
    tuned.get_layer("c").kernel.assign(rng.normal(size=(30, 2)))
    return base, tuned


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("delta")
    save_compressed(pair[0], folder / "base.dlopt")
    save_compressed(pair[1], folder / "whole.dlopt")
    save_compressed(pair[1], folder / "delta.dlopt", base=pair[0])
    return folder


def size(folder, name):
    return (folder / f"{name}.dlopt").stat().st_size


def test_a_fine_tuned_model_is_exact_and_small(pair, folder):
    base, tuned = pair
    assert size(folder, "delta") < 0.55 * size(folder, "whole")
    for given in (base, folder / "base.dlopt", str(folder / "base.dlopt")):
        loaded = load_compressed(folder / "delta.dlopt", base=given)
        for one, two in zip(tuned.weights, loaded.weights, strict=True):
            assert np.asarray(one.value).tobytes() == np.asarray(two.value).tobytes()


def test_a_file_serves_as_well_as_its_model(pair, folder):
    save_compressed(pair[1], folder / "other.dlopt", base=folder / "base.dlopt")
    one, two = (folder / f"{n}.dlopt" for n in ("other", "delta"))
    assert one.read_bytes() == two.read_bytes()


def test_a_copy_of_other_names_is_known_by_its_places(pair, folder):
    copy = keras.Sequential([layers.Dense(40), layers.BatchNormalization()])
    copy.add(layers.Dense(30))
    copy.add(layers.Dense(2))
    copy.build((None, 10))
    copy.set_weights(pair[0].get_weights())
    ledger = save_compressed(copy, folder / "copy.dlopt", base=pair[0])
    assert {row.method for row in ledger.rows} == {"as in the base"}


def test_what_did_not_change_takes_a_few_bytes(pair, folder):
    ledger = save_compressed(pair[0], folder / "same.dlopt", base=pair[0])
    assert {row.method for row in ledger.rows} == {"as in the base"}
    assert sum(row.bits for row in ledger.rows) == 0
    loaded = load_compressed(folder / "same.dlopt", base=pair[0])
    assert np.array_equal(loaded.get_weights()[0], pair[0].get_weights()[0])


def test_the_account_adds_up(pair, folder):
    ledger = save_compressed(pair[1], folder / "again.dlopt", base=pair[0])
    methods = {row.path: row.method for row in ledger.rows}
    assert methods["m/a/kernel"] == "as in the base"
    assert methods["m/b/kernel"].startswith(("difference, ", "xor, "))
    assert ledger.file_bytes == size(folder, "again")
    bits = sum(row.bits for row in ledger.rows)
    own = ledger.architecture_bytes + ledger.container_bytes
    assert ledger.file_bytes == bits // 8 + own
    assert ledger.to_dict()["gzip_bytes"] > 1000
    assert SHORT in read_container((folder / "again.dlopt").read_bytes())


def test_another_base_is_refused(pair, folder):
    base, tuned = pair
    path = folder / "delta.dlopt"
    with pytest.raises(FormatError, match=r"another base: .* the checksum \w{32}, th"):
        load_compressed(path, base=tuned)
    few = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="a")], name="m")
    with pytest.raises(FormatError, match="another base: .* given base are fewer"):
        load_compressed(path, base=few)
    for read in (load_compressed, CompressedFile, ledger_of):
        with pytest.raises(ConfigError, match="difference to another model. Pass that"):
            read(path)
    with pytest.raises(ConfigError, match="difference to another model. Pass that"):
        load_compressed(path, base=path)
    with pytest.raises(ConfigError, match="holds a whole model. Leave base out"):
        load_compressed(folder / "whole.dlopt", base=base)
    with pytest.raises(ConfigError, match="base must be a keras.Model or .*ed: int"):
        save_compressed(tuned, folder / "x.dlopt", base=3)


def arrays(dtype):
    rng = np.random.default_rng(0)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    base = rng.normal(0, 40, (30, 20)).astype(kind)
    other = base.copy()
    other[::3] = (base[::3].astype("float64") * 1.01).astype(kind)
    return base, other


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", [delta.XOR, delta.MINUS])
def test_differences_are_undone(dtype, how):
    base, other = arrays(dtype)
    written = delta.difference(other, base, how)
    assert written.dtype.kind == "u"
    assert written.dtype.itemsize == other.dtype.itemsize
    found = delta.applied(written, base, how)
    assert found.dtype == other.dtype
    assert found.tobytes() == other.tobytes()


def test_extremes_are_exact():
    patterns = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1], np.uint32)
    one, two = (x.reshape(-1).view("float32") for x in np.meshgrid(patterns, patterns))
    for how in (delta.XOR, delta.MINUS):
        found = delta.applied(delta.difference(one, two, how), two, how)
        assert found.tobytes() == one.tobytes()
    assert delta.difference(one[:1], one[:1], delta.MINUS).tolist() == [0]


def test_the_golden_file_decodes_for_ever():
    data = make_v5.PATH.read_bytes()
    base, own = make_v5.base(), make_v5.own()
    assert version_of(data) == 5
    read = read_contents(data, max_bytes=2**20, base=(["a", "b", "c", "d"], base))
    assert [t.method.split(",")[0] for t in read.tensors] == [
        "as in the base",
        "difference",
        "xor",
        "planes",
    ]
    # The other decoder knows docs/format.md alone.
    header, found = huffman_file.file(data, DICTIONARY, base=base)
    assert header["paths"] == ["a", "b", "c", "e"]
    for one, two, tensor in zip(own, found, read.tensors, strict=True):
        assert one.dtype == two.dtype == tensor.array.dtype
        assert one.tobytes() == two.tobytes() == tensor.array.tobytes()


def test_a_reader_written_from_the_specification(pair, folder):
    base = [np.asarray(v.value) for v in pair[0].weights]
    data = (folder / "delta.dlopt").read_bytes()
    _, found = huffman_file.file(data, DICTIONARY, SHORT_DICTIONARY, base)
    for one, two in zip(pair[1].weights, found, strict=True):
        assert np.asarray(one.value).tobytes() == two.tobytes()


def file():
    """A file with one array of each kind, its base and its arrays."""
    rng = np.random.default_rng(0)
    base = [rng.normal(size=(30, 20)).astype("float32") for _ in range(3)]
    near = base[1].view("int32") + rng.integers(-9, 10, (30, 20), "int32")
    own = [base[0], near.view("float32"), np.arange(9.0)]
    known = (["a", "b", "c"], base)
    state = SavedState(["a", "b", "d"], own, 3, 3)
    return write_contents({"m": 1}, state, {}.get, known), known, own


def test_read_contents_agrees():
    data, known, own = file()
    read = read_contents(data, max_bytes=2**20, base=known)
    assert [t.array.tobytes() for t in read.tensors] == [x.tobytes() for x in own]
    assert read.tensors[0].method == "as in the base"


ROWS = [
    ("no list", 7),
    ("no row", [3]),
    ("no number", [[0, "0", 0]]),
    ("a bool", [[0, 0, True]]),
    ("no such place", [[3, 0, 0]]),
    ("twice", [[0, 0, 0], [0, 0, 0]]),
    ("another way", [[0, 0, 3]]),
    ("below", [[0, -1, 0]]),
]


def altered(data, **changes):
    sections = read_container(data)
    header = read_header(sections, max_bytes=2**20) | changes
    text = write_json(header, dictionary=DICTIONARY)
    return write_container({HEADER: text, TENSORS: sections[TENSORS]}, version=5)


@pytest.mark.parametrize("rows", [r for _, r in ROWS], ids=[n for n, _ in ROWS])
def test_impossible_places_are_refused(rows):
    data, known, _ = file()
    with pytest.raises(FormatError, match="impossible places of arrays in a base"):
        read_contents(altered(data, **{"from": rows}), max_bytes=2**20, base=known)


def test_other_hostile_headers():
    data, known, _ = file()
    far = altered(data, **{"from": [[0, 10**12, 0]]})
    with pytest.raises(FormatError, match="another base"):
        read_contents(far, max_bytes=2**20, base=known)
    for base in (7, None, ["x"], "0" * 32):
        with pytest.raises(FormatError, match="another base"):
            read_contents(altered(data, base=base), max_bytes=2**20, base=known)
    # As many records as arrays that need one, of their shapes and dtypes.
    fewer = delta.header_of(delta.Origin(known[1], {0: (0, 1)}))
    with pytest.raises(FormatError, match="variables and not as many paths"):
        read_contents(altered(data, **fewer), max_bytes=2**20, base=known)
    wrong = delta.header_of(delta.Origin(known[1], {0: (0, 0), 2: (2, 1)}))
    with pytest.raises(FormatError, match="differences: they have another shape or"):
        read_contents(altered(data, **wrong), max_bytes=2**20, base=known)
    often = [[i, 0, 0] for i in range(2)]
    with pytest.raises(FormatError, match="what comes from the base would take 2400"):
        read_contents(altered(data, **{"from": often}), max_bytes=4000, base=known)
    older = write_container(read_container(data), version=3)
    with pytest.raises(FormatError, match="its header has other keys"):
        read_contents(older, max_bytes=2**20, base=known)


def test_what_comes_from_the_base_is_not_counted_against_a_small_file(tmp_path):
    model = keras.Sequential([keras.Input((3000,)), layers.Dense(3000)])
    save_compressed(model, tmp_path / "m.dlopt", base=model)
    assert limit_of((tmp_path / "m.dlopt").stat().st_size) < 4 * 3000 * 3000
    load_compressed(tmp_path / "m.dlopt", base=model)
