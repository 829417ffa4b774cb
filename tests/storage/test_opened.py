"""One array out of a file, without the others: what is read, and what is refused."""

import pathlib

import numpy as np
import pytest

from keras_dlopt.codecs.container import (
    HEADER,
    INDEXED,
    SHORT,
    read_container,
    write_container,
)
from keras_dlopt.codecs.reader import varint
from keras_dlopt.errors import ConfigError, FormatError
from keras_dlopt.storage import CompressedFile, opened
from keras_dlopt.storage.contents import SavedState, read_contents, write_contents

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def _fresh_keras_state():
    """No Keras here."""


def arrays():
    rng = np.random.default_rng(0)
    large = rng.normal(size=(300, 200)).astype("float32")
    sparse = np.where(rng.random((50, 40)) < 0.1, rng.normal(size=(50, 40)), 0)
    return [large, rng.integers(-9, 9, (7, 5)).astype("int8"), sparse, large.T.copy()]


NAMES = ["a/kernel", "b", "b", "turned"]


@pytest.fixture
def path(tmp_path):
    data = write_contents({"m": 1}, SavedState(NAMES, arrays(), 4, 4), {}.get)
    assert INDEXED in read_container(data)
    (tmp_path / "m.dlopt").write_bytes(data)
    return tmp_path / "m.dlopt"


@pytest.fixture
def taken(monkeypatch):
    """Sizes of all that is read from the disk."""
    sizes, read = [], opened._Span.__bytes__

    def counted(span):
        sizes.append(len(span))
        return read(span)

    monkeypatch.setattr(opened._Span, "__bytes__", counted)
    return sizes


def test_every_array_is_the_one_that_was_written(path):
    with CompressedFile(path) as file:
        assert file.names == tuple(NAMES)
        for place in (3, 0, 2, 1, 3):
            array, expected = file.read(place), arrays()[place]
            assert array.tobytes() == expected.tobytes()
            assert (file.shape(place), file.dtype(place)) == (
                expected.shape,
                expected.dtype,
            )
        assert file.read("a/kernel").tobytes() == arrays()[0].tobytes()


def test_heads_tell_what_arrays_take(path, taken):
    with CompressedFile(path) as file:
        found = [file.stored_bytes(i) for i in range(4)]
        listed = sum(taken)
    assert listed < 0.1 * path.stat().st_size
    contents = read_contents(path.read_bytes(), max_bytes=2**24)
    assert found == [sum(t.bits.values()) // 8 for t in contents.tensors]
    assert found[3] == 0  # it is the first one, turned


def test_opening_reads_heads_and_one_array_reads_its_record(path, taken):
    with CompressedFile(path) as file:
        assert [file.shape(i) for i in range(4)] == [a.shape for a in arrays()]
        assert sum(taken) < 2_000 < path.stat().st_size / 20
        file.read("a/kernel")
        taken.clear()
        file.read(1)
        assert sum(taken) < 200


def test_files_of_every_version(tmp_path):
    for name in ("v1_model.dlopt", "v3.dlopt"):
        expected = read_contents((GOLDEN / name).read_bytes(), max_bytes=10**7).tensors
        with CompressedFile(GOLDEN / name) as file:
            assert list(file.names) == [tensor.path for tensor in expected]
            for place, tensor in enumerate(expected):
                assert file.read(place).tobytes() == tensor.array.tobytes()
                assert file.shape(place) == tensor.array.shape
                assert file.dtype(place) == tensor.array.dtype


def test_an_altered_byte_is_found_before_an_array_is_given(path):
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1  # in the last record's values
    path.write_bytes(data)
    with CompressedFile(path) as file:
        for _ in range(2):
            with pytest.raises(FormatError, match="its checksum does not fit its"):
                file.read(1)


def forged(path, section):
    data = path.read_bytes()
    header = {k: v for k, v in read_container(data).items() if k in (HEADER, SHORT)}
    path.write_bytes(write_container({**header, INDEXED: section}))


def index_of(path):
    """The sizes in the index, and what follows them."""
    section = read_container(path.read_bytes())[INDEXED]
    sizes, at = [], 1
    for _ in range(section[0]):
        size = shift = 0
        while True:
            size |= (section[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if section[at - 1] < 128:
                break
        sizes.append(size)
    return sizes, section[at:]


def written(sizes, records):
    return varint(len(sizes)) + b"".join(map(varint, sizes)) + records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, r: varint(2**40) + r, "1099511627776 variables and not as many"),
        (lambda s, r: written([*s, 0], r), "4 variables and not as many paths"),
        (lambda s, r: written([s[0], s[1] + 1, s[2]], r), r"records of \d+ bytes in"),
        (lambda s, r: written(s, r[:-1]), r"records of \d+ bytes in"),
        (lambda s, r: written(s, r + b"\0"), r"records of \d+ bytes in"),
        (lambda s, r: written([2**62, s[1], s[2]], r), r"records of \d+ bytes in"),
        (lambda s, r: b"\x03" + b"\xff" * 10 + r, "is longer than 9 bytes"),
        (lambda s, r: b"\x03\x85", "3 variables in 1 bytes"),
        (lambda s, r: b"\x03\x85\x85\x85", "needs 1 bytes, but only 0 are left"),
        (lambda s, r: written([0, sum(s), 0], r), "the header of a tensor needs 1"),
        (
            lambda s, r: written(s, b"\x2b" + 2 * varint(2**31) + r[11:]),
            "pass a larger max_bytes",
        ),
        (lambda s, r: written(s, b"\x2f" + r[1:]), "dtype number 15"),
    ],
)
def test_hostile_indices_are_refused_when_the_file_is_opened(change, message, path):
    forged(path, change(*index_of(path)))
    with pytest.raises(FormatError, match=message):
        CompressedFile(path)
    with pytest.raises(FormatError, match=message):
        read_contents(path.read_bytes(), max_bytes=2**25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, r: ([s[0] - 1, *s[1:]], r[: s[0] - 1] + r[s[0] :]), "are left"),
        (lambda s, r: ([s[0] + 1, s[1] - 1, s[2]], r), "1 bytes follow a variable"),
        (lambda s, r: (s, r[:5] + b"\x33" + r[6:]), "uses method 51 for a tensor"),
        (lambda s, r: (s, r[:6] + b"\x77" + r[7:]), "uses method 119 for a plane"),
    ],
)
def test_hostile_records_are_refused_when_they_are_read(change, message, path):
    forged(path, written(*change(*index_of(path))))
    with CompressedFile(path) as file, pytest.raises(FormatError, match=message):
        file.read(0)
    with pytest.raises(FormatError, match=message):
        read_contents(path.read_bytes(), max_bytes=2**25)


def test_refusals(path, tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read .*none.*Pass the path of a"):
        CompressedFile(tmp_path / "none")
    with pytest.raises(FormatError, match=r"is larger than max_bytes=99\. If it comes"):
        CompressedFile(path, max_bytes=99)
    (tmp_path / "other").write_bytes(b"PK\x03\x04" + bytes(99))
    with pytest.raises(
        FormatError, match=r"Not a keras-dlopt file: it begins with b'PK"
    ):
        CompressedFile(tmp_path / "other")
    file = CompressedFile(path)
    with pytest.raises(ConfigError, match="'b' stands for 2 of the 4 arrays of"):
        file.read("b")
    with pytest.raises(ConfigError, match=r"'c' stands for 0 .*such as \['a/kernel'"):
        file.shape("c")
    with pytest.raises(ConfigError, match="-1 stands for 0"):
        file.dtype(-1)
    file.close()
    with pytest.raises(ConfigError, match="is closed. Read inside the with block"):
        file.read(0)


def test_a_file_that_is_cut_while_it_is_open(path):
    with CompressedFile(path) as file:
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(FormatError, match="was cut short while it was open"):
            file.read(0)
