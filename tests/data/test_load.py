import gzip
import importlib.machinery
import importlib.util
import os
import pathlib
import re
import struct
import sys
import types

import numpy as np
import pytest

from keras_dlopt.data import Dataset, load, loading
from keras_dlopt.data.idx import read_idx
from keras_dlopt.errors import ConfigError, DataError, MissingDependencyError

REAL = os.environ.get("KERAS_DLOPT_DATA")


def write_idx(path, array, *, shape=None, head=None):
    shape = array.shape if shape is None else shape
    head = head if head is not None else bytes([0, 0, 8, len(shape)])
    data = head + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_set(folder, *, train=20, test=6, suffix=".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for stem, count in (("train", train), ("t10k", test)):
        arrays[stem] = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", arrays[stem])
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", labels)
    return arrays


@pytest.fixture
def no_download(monkeypatch):
    import keras

    def refuse():
        raise OSError("no network here")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", refuse)
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", refuse)
    monkeypatch.delenv("KERAS_DLOPT_DATA", raising=False)


def test_digits_is_split_without_overlap_and_always_alike():
    a, b = load(), load("digits")
    assert (len(a.x_train), len(a.x_val), len(a.x_test)) == (1257, 180, 360)
    assert a.x_train.dtype == np.float32
    assert a.y_train.dtype == np.int32
    assert a.x_train.min() == 0
    assert a.x_train.max() == 1
    np.testing.assert_array_equal(a.x_test, b.x_test)
    from sklearn.datasets import load_digits

    every = np.concatenate([a.x_train, a.x_val, a.x_test]).reshape(1797, -1)
    expected = np.rint(load_digits().data * 255 / 16) / 255
    np.testing.assert_allclose(
        np.sort(every.sum(1)), np.sort(expected.sum(1)), rtol=1e-5
    )


def test_another_seed_shuffles_digits_differently():
    assert not np.array_equal(load(seed=1).y_train, load().y_train)


def test_uint8_is_the_same_images():
    a, b = load(dtype="uint8"), load()
    assert a.x_train.dtype == np.uint8
    np.testing.assert_array_equal(
        a.x_train.astype("float32") / np.float32(255), b.x_train
    )


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folder_as_argument(tmp_path, suffix):
    arrays = write_set(tmp_path / "mnist", suffix=suffix)
    for folder in (tmp_path, tmp_path / "mnist"):
        data = load("mnist", folder=folder, validation=5, dtype="uint8")
        np.testing.assert_array_equal(data.x_train[..., 0], arrays["train"][:15])
        np.testing.assert_array_equal(data.x_val[..., 0], arrays["train"][15:])
        np.testing.assert_array_equal(data.x_test[..., 0], arrays["t10k"])
        assert data.y_val.tolist() == [5, 6, 7, 8, 9]


def test_environment_variable_and_hyphenated_folder(tmp_path, monkeypatch):
    write_set(tmp_path / "fashion-mnist")
    monkeypatch.setenv(loading.ENVIRONMENT, str(tmp_path))
    data = load("fashion_mnist", validation=0.25)
    assert len(data.x_val) == 5
    assert data.class_names[9] == "ankle boot"


def test_a_folder_called_after_the_other_set_is_not_used(tmp_path, no_download):
    write_set(tmp_path / "mnist")
    with pytest.raises(DataError, match="fashion_mnist was not found"):
        load("fashion_mnist", folder=tmp_path / "mnist")


def test_path_of_an_idx_folder(tmp_path):
    write_set(tmp_path / "kana")
    data = load(tmp_path / "kana")
    assert data.name == "kana"
    assert (len(data.x_train), len(data.x_val), data.classes) == (18, 2, 10)


def test_the_error_names_all_that_was_tried_in_order(
    tmp_path, no_download, monkeypatch
):
    with pytest.raises(DataError) as error:
        load("mnist")
    text = str(error.value)
    assert "1. the environment variable KERAS_DLOPT_DATA: not set" in text
    assert (
        "2. Keras' own copy in ~/.keras, or its download: OSError: no network" in text
    )
    monkeypatch.setenv(loading.ENVIRONMENT, str(tmp_path))
    with pytest.raises(DataError) as error:
        load("mnist")
    text = str(error.value)
    first = text.index(f"1. KERAS_DLOPT_DATA, {tmp_path / 'mnist'}: no such folder")
    second = text.index(f"2. KERAS_DLOPT_DATA, {tmp_path}: no train-images-idx3-ubyte")
    assert first < second < text.index("3. Keras' own copy")
    assert "'digits', which needs no download" in text


def test_an_explicit_folder_is_the_only_place(tmp_path, no_download):
    with pytest.raises(DataError) as error:
        load("mnist", folder=tmp_path / "nowhere")
    assert "no such folder" in str(error.value)
    assert "Keras' own" not in str(error.value)


def test_keras_own_copy_is_the_last_resort(monkeypatch):
    import keras

    x = np.zeros((6000, 2, 2), np.uint8)
    y = (np.arange(6000) % 10).astype(np.uint8)
    monkeypatch.delenv("KERAS_DLOPT_DATA", raising=False)
    monkeypatch.setattr(
        keras.datasets.mnist, "load_data", lambda: ((x, y), (x[:10], y[:10]))
    )
    data = load("mnist")
    assert (len(data.x_train), len(data.x_val), len(data.x_test)) == (1000, 5000, 10)


def test_npz(tmp_path):
    x = np.linspace(0, 1, 40 * 4, dtype=np.float64).reshape(40, 4)
    y = np.arange(40) % 3
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y[:, None], x_test=x, y_test=y)
    data = load(tmp_path / "a.npz")
    assert data.name == "a"
    assert data.x_train.dtype == np.float32
    assert (len(data.x_train), len(data.x_val), data.classes) == (36, 4, 3)
    np.savez(
        tmp_path / "b.npz",
        **dict(x_train=x, y_train=y, x_val=x[:7], y_val=y[:7], x_test=x, y_test=y),
    )
    assert len(load(tmp_path / "b.npz").x_val) == 7
    with pytest.raises(ConfigError, match="brings its own validation part"):
        load(tmp_path / "b.npz", validation=3)
    with pytest.raises(DataError, match="cannot be given as uint8"):
        load(tmp_path / "b.npz", dtype="uint8")


def test_npz_is_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "exploded",))

    y = np.zeros(3, int)
    bomb = np.array([Bomb()], object)
    np.savez(tmp_path / "a.npz", x_train=bomb, y_train=y, x_test=y, y_test=y)
    with pytest.raises(DataError, match="since loading them runs code"):
        load(tmp_path / "a.npz")
    assert not (tmp_path / "exploded").exists()


def test_npz_with_the_wrong_keys_or_damaged(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(DataError, match=r"holds \['x'\]; expected x_train, y_train"):
        load(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"PK\3\4 not a zip")
    with pytest.raises(DataError, match="cannot be read as an"):
        load(tmp_path / "b.npz")


def _loaded(path):
    try:
        return load(path)
    except DataError as error:
        return error


def test_npz_that_a_disk_damaged_is_refused_in_one_way(tmp_path):
    x, y = np.random.default_rng(0).random((9, 4)), np.arange(9) % 3
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    path, seen = tmp_path / "a.npz", set()
    for write in (np.savez, np.savez_compressed):
        write(path, **arrays)
        whole = path.read_bytes()
        damaged = [whole[:cut] for cut in range(0, len(whole), 97)]
        for at in range(0, len(whole), 7):
            for bit in (0x01, 0xFF):
                damaged.append(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        for content in damaged:
            path.write_bytes(content)
            found = _loaded(path)
            if isinstance(found, DataError):
                assert str(path) in str(found)
                seen.add(type(found.__cause__.__cause__ if found.__cause__ else None))
            else:  # a date, or another byte that means nothing
                assert (len(found.x_train), found.classes) == (8, 3)
    assert len(seen) > 3  # kinds of what zipfile, zlib and NumPy raise
    np.save(path.with_suffix(".npy"), x)
    path.with_suffix(".npy").rename(path)
    with pytest.raises(DataError, match="cannot be read as an .npz archive"):
        load(path)
    np.savez(path, **arrays, notes=np.array([{}], object))
    assert load(path).classes == 3  # what is not asked for is not read


def _images(folder, *, count=10, size=(4, 6), mode="RGB"):
    from PIL import Image

    rng = np.random.default_rng(1)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.png")


def test_folder_of_images(tmp_path):
    _images(tmp_path / "pets")
    data = load(tmp_path / "pets")
    assert data.class_names == ("cat", "dog")
    assert data.input_shape == (4, 6, 3)
    assert (len(data.x_train), len(data.x_val), len(data.x_test)) == (14, 2, 4)
    assert load(tmp_path / "pets", image_size=(8, 8)).input_shape == (8, 8, 3)


def test_folder_of_images_in_parts(tmp_path):
    _images(tmp_path / "train", mode="L")
    _images(tmp_path / "test", count=3, mode="L")
    data = load(tmp_path)
    assert data.input_shape == (4, 6, 1)
    assert (len(data.x_train), len(data.x_val), len(data.x_test)) == (18, 2, 6)
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "cow")
    with pytest.raises(DataError, match=r"has classes \['cow'\]"):
        load(tmp_path)


def test_image_folder_errors(tmp_path):
    _images(tmp_path / "a")
    (tmp_path / "a" / "cat" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png cannot be read as an image"):
        load(tmp_path / "a")
    _images(tmp_path / "b")
    _images(tmp_path / "other", size=(5, 5))
    (tmp_path / "other" / "dog" / "0.png").rename(tmp_path / "b" / "dog" / "z.png")
    with pytest.raises(DataError, match=r"Give image_size=\(height, width\)"):
        load(tmp_path / "b")
    _images(tmp_path / "c" / "train")
    with pytest.raises(DataError, match="and no folder test"):
        load(tmp_path / "c")
    _images(tmp_path / "d" / "test")
    (tmp_path / "d" / "train").mkdir()
    with pytest.raises(DataError, match="train has no images"):
        load(tmp_path / "d")


def test_an_image_folder_without_images_says_so(tmp_path):
    from keras_dlopt.data.folders import from_folder

    with pytest.raises(DataError, match="has no images"):
        from_folder(tmp_path, image_size=None, seed=0)


def test_unknown_names_and_paths(tmp_path):
    with pytest.raises(DataError, match="a known name: digits, mnist, fashion_mnist"):
        load("mnits")
    with pytest.raises(DataError, match="neither the four idx files"):
        load(tmp_path)
    (tmp_path / "a.txt").write_text("1,2")
    with pytest.raises(DataError, match=r"it is none of these files"):
        load(tmp_path / "a.txt")


def test_arguments_that_do_not_fit(tmp_path):
    with pytest.raises(
        ConfigError, match="dtype must be 'float32' or 'uint8'. Received: 'float16'"
    ):
        load(dtype="float16")
    with pytest.raises(ConfigError, match="folder goes with mnist or fashion_mnist"):
        load("digits", folder=tmp_path)
    with pytest.raises(ConfigError, match="image_size applies to folders of images"):
        load("digits", image_size=(8, 8))
    for bad in (1437, 1.0, np.float32(1), np.asarray(1437)):
        with pytest.raises(
            ConfigError, match="validation must be a share.*the 1437 tr"
        ):
            load("digits", validation=bad)
    for bad in (-1, True, "a"):
        with pytest.raises(
            ConfigError, match=r"number, 0 or greater.*a share in \[0, 1"
        ):
            load("digits", validation=bad)


def test_labels_that_are_no_classes(tmp_path):
    x = np.zeros((10, 2))
    np.savez(
        tmp_path / "a.npz", x_train=x, y_train=x[:, 0] + 0.5, x_test=x, y_test=x[:, 0]
    )
    data = load(tmp_path / "a.npz")
    assert (data.y_train.dtype, data.classes) == (np.float32, 0)
    assert repr(data).endswith("shape (2,), no classes)")
    s = np.array(["a"] * 10)
    np.savez(tmp_path / "b.npz", x_train=s, y_train=x[:, 0], x_test=x, y_test=x[:, 0])
    with pytest.raises(DataError, match="expected numbers"):
        load(tmp_path / "b.npz")
    for y, text in (
        (x[:, 0] + np.nan, "y_train has labels that are not finite"),
        (x[:, 0] * 1j, "y_train holds values of type complex128"),
    ):
        np.savez(tmp_path / "c.npz", x=x, y=y)
        with pytest.raises(DataError, match=text):
            load(tmp_path / "c.npz")


def test_labels_of_all_kinds_become_classes_or_targets(tmp_path):
    x = np.arange(40, dtype=np.uint8).reshape(20, 2)
    words = np.array(["cat", "ant"] * 10)
    for y, names, first in (
        (words, ("ant", "cat"), np.int32(0)),
        (np.eye(3)[np.arange(20) % 3], ("0", "1", "2"), np.int32(0)),
        (np.linspace(-1, 1, 20), (), np.float32(0)),
        (np.zeros((20, 4, 4), int), (), np.int32(0)),
        (np.arange(20)[:, None] % 2, ("0", "1"), np.int32(0)),
    ):
        np.savez(tmp_path / "a.npz", X=x, y=y)
        data = load(tmp_path / "a.npz")
        assert data.class_names == names
        assert data.y_train.dtype == first.dtype
        assert data.of_bytes
        # x / 255 is exact enough to say which row it was, and so which label.
        rows = np.rint(data.x_test[:, 0] * 255 / 2).astype(int)
        found = [names[i] for i in data.y_test] if names else list(data.y_test)
        if y is words:
            assert found == list(words[rows])
        assert (len(data.x_train), len(data.x_val), len(data.x_test)) == (14, 2, 4)
    np.savez(tmp_path / "b.npz", x_train=x, y_train=words, x_test=x[:1], y_test=["cow"])
    with pytest.raises(DataError, match=r"y_test has the classes \['cow'\]"):
        load(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x=x, y=np.arange(20) - 5)
    with pytest.raises(DataError, match="Number the classes from 0; give numbers"):
        load(tmp_path / "c.npz")


def test_tables(tmp_path):
    path = tmp_path / "flowers.csv"
    lines = ["a;species;b"] + [f"{i};{'xy'[i % 2]};{i / 2}" for i in range(20)]
    path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    data = load(path, label="species")
    assert (data.name, data.class_names, data.input_shape) == (
        *("flowers", ("x", "y")),
        (2,),
    )
    for one, label in zip(data.x_test, data.y_test, strict=True):
        assert one[0] == 2 * one[1]
        assert one[0] % 2 == label
    last = tmp_path / "plain.tsv"
    last.write_text("".join(f"{i}\t{i % 3}\n" for i in range(9)))
    assert load(last).classes == 3
    last.write_text("".join(f"{i}\t{i / 7}\n" for i in range(9)))
    assert load(last).classes == 0


@pytest.mark.parametrize(
    ("text", "label", "told"),
    [
        ("a,b\n1,0\n1,1", None, "has 2 rows of examples; expected 3 or more"),
        ("a,b\n" + "1,0\n" * 5, "c", "has no column 'c'. It has: a, b."),
        ("species,b\n" + "1,0\n" * 5, "specis", "Did you mean 'species'?"),
        ("1,0\n" * 5, "c", "has no line of column names"),
        ("a,b\n" + "1,0\n" * 5 + "1,\n", None, "row 6 has no label in the column 'b'"),
        ("a,b\n" + "1,0\n" * 5 + "red,0\n", None, "row 6 has 'red' in the column 'a'"),
        ("a,b\n" + "1,0\n" * 5 + "nan,0\n", None, "row 6 has 'nan' in the column 'a'"),
        ("a,b\n1,0\n1", None, "rows of 1, 2 columns"),
        ("", None, "rows of no columns"),
    ],
)
def test_tables_that_are_none(tmp_path, text, label, told):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises((DataError, ConfigError), match=re.escape(told)):
        load(path, label=label)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read as a table"):
        load(path)
    with pytest.raises(ConfigError, match=r"label names a column of a \.csv"):
        load("digits", label="a")


class _Datasets:
    """What `tensorflow_datasets` does, for names that hold parts and shapes."""

    def __init__(self, **parts):
        self.parts = parts
        self.info = types.SimpleNamespace(
            splits=parts,
            supervised_keys=("image", "label"),
            features={"label": types.SimpleNamespace(names=["a", "b"])},
        )

    def builder(self, name):
        if name == "none":
            raise ValueError("no such set.\nand more")
        return self

    def download_and_prepare(self):
        pass

    def as_dataset(self, *, split, as_supervised):
        return self.parts[split]

    def as_numpy(self, pairs):
        return iter(pairs)


def _pairs(count, *, sizes=(4,), label=1):
    images = [np.full((sizes[i % len(sizes)], 4, 1), i, np.uint8) for i in range(count)]
    return [(image, label) for image in images]


@pytest.mark.advice("data/tfds.py", "Give image_size=(height, width) to resize.")
def test_names_of_tensorflow_datasets(monkeypatch):
    def given(**parts):
        found = _Datasets(**parts)
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", found)
        found.__spec__ = importlib.machinery.ModuleSpec("tensorflow_datasets", None)
        return found

    given(train=_pairs(10), validation=_pairs(3), test=_pairs(4))
    data = load("tfds:own")
    assert (len(data.x_train), len(data.x_val), len(data.x_test)) == (10, 3, 4)
    assert data.class_names == ("a", "b")
    given(train=_pairs(20), validation=_pairs(3), test=_pairs(4, label=-1))
    data = load("tfds:own")
    assert (len(data.x_train), len(data.x_val), len(data.x_test)) == (18, 2, 3)
    given(train=_pairs(20, label=-1.5))  # numbers to predict
    assert np.all(load("tfds:own").y_train == -1.5)
    given(train=_pairs(20, sizes=(4, 6)))
    with pytest.raises(DataError, match="Give image_size"):
        load("tfds:own")
    data = load("tfds:own", image_size=(5, 4))
    assert data.input_shape == (5, 4, 1)
    assert (len(data.x_train), len(data.x_val), len(data.x_test)) == (14, 2, 4)
    with pytest.raises(DataError, match="gives no 'none': no such set. Its names"):
        load("tfds:none")
    given(train=_pairs(3)).info.supervised_keys = None
    with pytest.raises(DataError, match="has no pairs of examples and labels"):
        load("tfds:own")


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_datasets") is not None,
    reason="tells what is missing",
)
def test_tensorflow_datasets_are_an_extra():
    with pytest.raises(MissingDependencyError, match=r"keras-dlopt\[tfds\]"):
        load("tfds:mnist")


def test_a_hostile_header_is_refused_before_memory_is_asked_for(tmp_path):
    path = tmp_path / "a-idx3-ubyte"
    for suffix in ("", ".gz"):
        path = tmp_path / f"a{suffix}"
        write_idx(path, np.zeros(3, np.uint8), shape=(2**32 - 1, 2**31, 2))
        with pytest.raises(DataError, match="bytes cannot hold"):
            read_idx(path)


def test_a_set_with_a_hostile_header_is_refused_too(tmp_path):
    for name in ("train", "t10k"):
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", np.zeros(2, np.uint8))
        path = tmp_path / f"{name}-images-idx3-ubyte"
        write_idx(path, np.zeros(3, np.uint8), shape=(2**31, 2**31, 2))
    with pytest.raises(DataError, match="bytes cannot hold"):
        load(tmp_path)


def test_damaged_idx_files(tmp_path):
    path = tmp_path / "x"
    values = np.arange(12, dtype=np.uint8)
    write_idx(path, values, head=b"\0\0\x0d\x01")
    with pytest.raises(DataError, match="idx type 0x0d; expected 0x08"):
        read_idx(path)
    path.write_bytes(b"PNG!")
    with pytest.raises(DataError, match="is not an idx file"):
        read_idx(path)
    path.write_bytes(b"\0\0\x08\x03\0\0")
    with pytest.raises(DataError, match="ends inside its header"):
        read_idx(path)
    write_idx(path, values, shape=(11,))
    with pytest.raises(DataError, match=r"announces 11 values .* holds more"):
        read_idx(path)
    write_idx(path, values, shape=(13,))
    with pytest.raises(DataError, match="holds only 12"):
        read_idx(path)
    packed = tmp_path / "x.gz"
    write_idx(packed, np.random.default_rng(0).integers(0, 256, 9000).astype(np.uint8))
    packed.write_bytes(packed.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"x\.gz is damaged"):
        read_idx(packed)


def test_idx_arrays_of_the_wrong_rank_and_missing_files(tmp_path):
    from keras_dlopt.data.sources import from_idx

    write_set(tmp_path / "a")
    write_idx(tmp_path / "a" / "train-images-idx3-ubyte.gz", np.zeros(4, np.uint8))
    with pytest.raises(DataError, match=r"holds an array of shape \(4,\)"):
        load(tmp_path / "a")
    with pytest.raises(DataError, match="has no train-images-idx3-ubyte"):
        from_idx(tmp_path, "mnist")


def test_dataset_refuses_parts_that_do_not_fit():
    x, y = np.zeros((4, 2), "float32"), np.zeros(4, "int32")

    def make(**kwargs):
        parts = dict(x_train=x, y_train=y, x_val=x, y_val=y, x_test=x, y_test=y)
        return Dataset(name="toy", class_names=("a",), **(parts | kwargs))

    with pytest.raises(DataError, match="one label per example"):
        make(y_val=y[:2])
    with pytest.raises(DataError, match=r"examples of shape \(3,\)"):
        make(x_test=np.zeros((4, 3), "float32"))
    with pytest.raises(DataError, match="expected 0 to 0 for 1 classes"):
        make(y_test=y + 1)
    with pytest.raises(DataError, match="no training examples are left"):
        make(x_train=x[:0], y_train=y[:0])
    assert make().take(2, test=1).val[0].shape == (1, 2)
    assert make().take(2).test[1].shape == (4,)
    assert make().train[0] is x


def test_a_source_without_test_part():
    from keras_dlopt.data.split import Raw, finish

    with pytest.raises(DataError, match="toy has no test part"):
        finish(
            Raw("toy", np.zeros((2, 2)), np.zeros(2)), dtype="float32", validation=None
        )


@pytest.mark.skipif(
    not REAL, reason="KERAS_DLOPT_DATA does not name the real idx files"
)
@pytest.mark.parametrize(("name", "val"), [("mnist", 5000), ("fashion_mnist", 10000)])
def test_the_real_files(name, val):
    data = load(name, dtype="uint8")
    assert (len(data.x_train), len(data.x_val)) == (60_000 - val, val)
    assert data.x_test.shape == (10_000, 28, 28, 1)
    assert np.bincount(data.y_test).min() > 800
