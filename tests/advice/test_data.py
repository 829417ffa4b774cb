"""Data sets: errors that say what to do, and that it works."""

import gzip
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from keras_dlopt.data import Dataset, load
from keras_dlopt.data.idx import read_idx
from keras_dlopt.files import check_folder, read_limited, read_npz, workspace
from keras_dlopt.files import write_atomic as write

advice = pytest.mark.advice


def npz(path, *, train=6, dtype="uint8", test_side=4):
    x = np.zeros((train, 4, 4), dtype)
    test = np.zeros((2, test_side, 4), dtype)
    labels = np.arange(train) % 2
    np.savez(path, x_train=x, y_train=labels, x_test=test, y_test=[0, 1])
    return path


def pictures(folder, *pictures, name="c"):
    """A class of pictures beside another class of one like the first."""
    for label in (name, "other"):
        (folder / label).mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        picture.save(folder / name / f"{i}.png")
        pictures[0].save(folder / "other" / f"{i}.png")


def gray(side=4, dtype=np.uint8):
    return Image.fromarray(np.full((side, side), 7, dtype))


@advice("data/split.py", "Ask for dtype='float32'.")
def test_values_that_are_no_bytes(told, tmp_path):
    path = npz(tmp_path / "d.npz", dtype="float64")
    with told():
        load(path, dtype="uint8")
    assert load(path, dtype="float32").x_train.dtype == np.float32


@advice("data/dataset.py", "Make them equal.")
def test_parts_of_two_shapes(told, tmp_path):
    with told():
        load(npz(tmp_path / "d.npz", test_side=3))
    assert load(npz(tmp_path / "d.npz")).x_test.shape == (2, 4, 4, 1)


@advice("data/dataset.py", "Give more data or a smaller validation part.")
def test_no_training_examples(told, tmp_path):
    x, y = np.zeros((4, 2, 2, 1), "float32"), np.zeros(4, "int32")
    with told():
        Dataset("toy", x[:0], y[:0], x, y, x, y, ("a",))
    assert len(Dataset("toy", x[:2], y[:2], x[2:], y[2:], x, y, ("a",)).x_train) == 2


@advice("data/csv_file.py", "Leave such rows out.")
@advice("data/csv_file.py", "Leave that column or row out, or write categories as")
@advice("data/csv_file.py", "Add one, or put the labels into the last column.")
def test_tables(told, tmp_path):
    path, rows = tmp_path / "a.csv", ["1,2,0", "3,4,1", "5,6,0"]

    def given(*lines, label=None):
        path.write_text("\n".join(lines))
        return load(path, label=label).x_train.shape[1]

    with told():
        given(*rows, "7,8,")
    with told():
        given(*rows, "7,red,1")
    assert given(*rows) == 2  # without the row
    assert given("1,0", "3,1", "5,0", "7,1") == 1  # or the column
    assert given("1,1,0,0", "3,0,1,1", "5,0,1,0", "7,1,0,1") == 3  # or as 0 and 1
    with told():
        given("0,1,2", "1,3,4", "0,5,6", label="kind")
    assert given("kind,a,b", "0,1,2", "1,3,4", "0,5,6", label="kind") == 2
    assert given(*rows) == 2


@advice("data/folders.py", "Save all alike.")
def test_pictures_of_two_depths(told, tmp_path):
    pictures(tmp_path, gray(), gray(dtype=np.uint16))
    with told():
        load(tmp_path)
    pictures(tmp_path, gray(dtype=np.uint16), gray(dtype=np.uint16))
    assert load(tmp_path).x_train.dtype == np.float32


@advice("data/folders.py", "Add one.")
def test_a_folder_train_alone(told, tmp_path):
    pictures(tmp_path / "train", gray(), gray())
    with told():
        load(tmp_path)
    pictures(tmp_path / "test", gray(), gray())
    assert len(load(tmp_path, validation=1).x_test) == 4


@advice("data/folders.py", "Save 8 or 16 bits a pixel, or an .npz file with x_train")
def test_pictures_of_32_bits(told, tmp_path):
    folder = tmp_path / "d"
    pictures(folder, gray(), gray())
    Image.fromarray(np.zeros((4, 4), "float32")).save(folder / "c" / "0.tiff")
    (folder / "c" / "0.tiff").rename(folder / "c" / "0.png")
    with told():
        load(folder)
    pictures(folder, gray(), gray())
    assert load(folder).x_train.max() == np.float32(7 / 255)
    assert len(load(npz(tmp_path / "d.npz", dtype="float32")).x_test) == 2


@advice("data/folders.py", "Put it on a background, as PIL.Image.alpha_composite does")
@advice("data/folders.py", "Save 8 bits a channel, or an .npz file with x_train")
def test_pictures_of_more_than_colors(told, tmp_path):
    clear = Image.new("RGBA", (4, 4), (9, 9, 9, 99))
    folder = tmp_path / "d"
    pictures(folder, clear, clear)
    with told():
        load(folder)
    behind = Image.alpha_composite(Image.new("RGBA", (4, 4), "white"), clear)
    pictures(folder, behind.convert("RGB"), behind.convert("RGB"))
    assert load(folder).x_train.max() < 1
    wide = folder / "c" / "0.ppm"
    (folder / "c" / "0.png").unlink()
    wide.write_bytes(b"P6\n4 4\n65535\n" + bytes(96))
    with told():
        load(folder)
    wide.write_bytes(b"P6\n4 4\n255\n" + bytes(48))
    assert load(folder).x_train.min() == 0
    assert len(load(npz(tmp_path / "d.npz", dtype="float32")).x_test) == 2


@advice("data/folders.py", "Give image_size=(height, width) to resize.")
def test_pictures_of_two_sizes(told, tmp_path):
    pictures(tmp_path, gray(4), gray(6))
    with told():
        load(tmp_path)
    assert load(tmp_path, image_size=(5, 3)).x_train.shape[1:] == (5, 3, 1)


@advice("data/folders.py", "Save the one that is meant as a file of its own.")
def test_files_of_several_pictures(told, tmp_path):
    pictures(tmp_path, gray(), gray())
    several = tmp_path / "c" / "0.gif"
    other = Image.fromarray(np.zeros((4, 4), np.uint8))
    gray().save(several, save_all=True, append_images=[other])
    with told():
        load(tmp_path)
    several.unlink()
    assert len(load(tmp_path).x_test) == 1


def idx(values, *, count=None):
    size = (len(values) if count is None else count).to_bytes(4, "big")
    return b"\0\0\x08\x01" + size + bytes(values)


@pytest.mark.parametrize(
    ("damaged", "name"),
    [
        pytest.param(
            idx(range(9), count=2**31),
            "a",
            marks=advice("data/idx.py", "cannot hold. Download or copy it again."),
        ),
        pytest.param(
            idx(range(9), count=7),
            "a",
            marks=advice("data/idx.py", "and holds {}. Download or copy it again."),
        ),
        pytest.param(
            idx(range(9))[:6],
            "a",
            marks=advice(
                "data/idx.py", "inside its header. Download or copy it again."
            ),
        ),
        pytest.param(
            gzip.compress(idx(range(9)), mtime=0)[:-9],
            "a.gz",
            marks=advice("data/idx.py", "is damaged: {}. Download or copy it again."),
        ),
    ],
)
def test_idx_files_that_lack_something(told, tmp_path, damaged, name):
    path = tmp_path / name
    path.write_bytes(damaged)
    with told():
        read_idx(path)
    whole = idx(range(9))
    path.write_bytes(gzip.compress(whole) if name.endswith(".gz") else whole)
    assert read_idx(path).tolist() == list(range(9))


@advice("data/loading.py", "Give the path itself as name instead.")
def test_a_folder_beside_a_path(told, tmp_path):
    path = npz(tmp_path / "d.npz")
    with told():
        load("d.npz", folder=tmp_path)
    assert load(path).name == "d"


@advice(
    "files.py", "Write it again with np.savez(path, ...), without arrays of objects."
)
def test_archives_of_objects(told):
    for make in (lambda m: np.savez(m, a=np.array([{}])), lambda m: m.write(b"PK")):
        memory = io.BytesIO()
        make(memory)
        with told():
            read_npz(memory.getvalue())
    memory = io.BytesIO()
    np.savez(memory, a=np.arange(3))
    assert zipfile.is_zipfile(memory)
    assert read_npz(memory.getvalue())["a"].tolist() == [0, 1, 2]


@advice("files.py", "Check its permissions.")
@advice("files.py", "Pass the path of a file that exists.")
def test_files_that_cannot_be_read(told, tmp_path, monkeypatch):
    with told():
        read_limited(tmp_path / "absent", 9)
    path = tmp_path / "there"
    path.write_bytes(b"1")
    with monkeypatch.context() as patched, told():
        # whoever runs the tests may be allowed to read everything
        patched.setattr("builtins.open", _denied)
        read_limited(path, 9)
    assert read_limited(path, 9) == b"1"


def _denied(*arguments, **options):
    raise PermissionError(13, "Permission denied")


@advice("files.py", "Choose a folder that exists and that you may write to.")
def test_files_that_cannot_be_written(told, tmp_path):
    with told():
        write(tmp_path / "absent" / "a", b"1")
    write(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


@advice("files.py", "Choose another.")
def test_folders_that_cannot_be_made(told, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with told(), workspace(tmp_path / "file" / "out"):
        pass
    with workspace(tmp_path / "out") as folder:
        (folder / "a").write_bytes(b"1")
    assert (tmp_path / "out" / "a").read_bytes() == b"1"


@advice("files.py", "Choose another with {}.")
def test_folders_that_may_not_be_written(told, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, told():
        patched.setattr("os.access", lambda *_: False)
        check_folder(tmp_path / "out", name="--out")
    check_folder(tmp_path / "out", name="--out")
