"""Shards of pictures and of levels, of data sets, cached; what reading refuses."""

import io

import numpy as np
import pytest
from PIL import Image

from keras_dlopt.data import read_shards, read_speed, verify_shards, write_shards
from keras_dlopt.data.shards import coding, pictures, records
from keras_dlopt.errors import ConfigError, DataError, FormatError

tf = pytest.importorskip("tensorflow")
RNG = np.random.default_rng(0)


def smooth(count, size, colors):
    """Images that JPEG is made for, each of another level."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    wave = 40 * np.sin(rows / 9)[..., None] + columns[..., None] + np.zeros(colors)
    level = RNG.integers(60, 120, (count, 1, 1, colors))
    return (level + wave[None]).astype("uint8")


def joined(data):
    batches = list(data.as_numpy_iterator())
    if isinstance(batches[0], tuple):
        return tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))
    return np.concatenate(batches)


IMAGES = smooth(30, (20, 11), 3)
LABELS = np.arange(30)


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 1), (7, 9, 3)])
@pytest.mark.parametrize("name", ["png", "webp"])
def test_pictures_without_loss(tmp_path, name, shape):
    images = RNG.integers(0, 256, (11, *shape)).astype("uint8")
    write_shards(images, tmp_path, coding=name, shard_examples=6, block_examples=4)
    np.testing.assert_array_equal(joined(read_shards(tmp_path)), images)
    assert verify_shards(tmp_path) == 11


@pytest.mark.parametrize(("name", "most"), [("jpeg 90", 3.0), ("webp 80", 6.0)])
def test_pictures_with_loss_say_how_much(tmp_path, name, most):
    data = {"image": IMAGES, "label": LABELS}
    report = write_shards(
        data, tmp_path, coding={"image": name, "label": None}, block_examples=7
    )
    batches = list(read_shards(tmp_path).as_numpy_iterator())
    images = np.concatenate([b["image"] for b in batches])
    error = np.abs(images.astype(float) - IMAGES)
    assert report.largest_errors == (error.max(), 0)
    assert report.rms_errors[0] == pytest.approx(np.sqrt((error**2).mean()))
    assert 0 < report.rms_errors[0] < most
    assert f"with loss: {name} is off by" in str(report)
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in batches]), LABELS)
    assert verify_shards(tmp_path) == 30
    # What was given is compared, not what is read back.
    again = write_shards(
        data, tmp_path, coding={"image": name, "label": None}, block_examples=7
    )
    assert again.written == 0
    assert again.largest_errors == report.largest_errors
    assert write_shards(data, tmp_path).written == 1


def test_a_picture_is_what_its_format_says():
    """One image in a picture of its own is Pillow's file of it."""
    image = IMAGES[:1, :16, :11]
    (length,) = np.frombuffer(pictures.drawn(image, "png")[:8], "<u8")
    data = pictures.drawn(image, "png")[8 : 8 + int(length)]
    with Image.open(io.BytesIO(data)) as picture:
        np.testing.assert_array_equal(np.asarray(picture), image[0])


def test_many_images_fill_several_pictures(monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST_SIDE", 40)
    images = RNG.integers(0, 256, (23, 12, 15)).astype("uint8")
    data = pictures.drawn(images, "png")
    seen = pictures.undrawn(data, "png", images.shape)
    np.testing.assert_array_equal(seen, images)
    with pytest.raises(FormatError, match="lacks a picture"):
        pictures.undrawn(data, "png", (29, 12, 15))
    with pytest.raises(FormatError, match="more pictures than it says"):
        pictures.undrawn(data, "png", (6, 12, 15))
    with pytest.raises(FormatError, match="a picture is of"):
        pictures.undrawn(data, "png", (23, 12, 14))
    with pytest.raises(FormatError, match="a picture is damaged"):
        pictures.undrawn(data[:8] + b"\0" + data[9:], "png", images.shape)


@pytest.mark.parametrize("bits", [8, 16])
def test_levels_are_off_by_half_a_step(tmp_path, bits):
    x = RNG.normal(size=(50, 6)).astype("float32")
    report = write_shards(
        (x, LABELS.repeat(2)[:50]), tmp_path / "a", coding=(f"levels {bits}", None)
    )
    seen = joined(read_shards(tmp_path / "a"))[0]
    step = (x.max() - x.min()) / (2**bits - 1)
    assert seen.dtype == "float32"
    codes = np.round((x.astype("float64") - x.min()) / step)
    np.testing.assert_allclose(seen, x.min() + codes * step, atol=1e-5)
    assert 0.4 * step < report.largest_errors[0] < 0.5 * step + 1e-6
    assert verify_shards(tmp_path / "a") == 50
    flat = np.full((4, 2), 0.3)
    write_shards(flat, tmp_path / "b", coding=f"levels {bits}")
    np.testing.assert_array_equal(joined(read_shards(tmp_path / "b")), flat)


@pytest.mark.parametrize("name", ["gif", "jpeg", "jpeg 0", "jpeg 101", "levels 4", 3])
def test_codings_that_do_not_exist(tmp_path, name):
    with pytest.raises(ConfigError, match="coding must be 'png', 'webp', 'jpeg 90' or"):
        write_shards(IMAGES, tmp_path, coding=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("array", "name"),
    [
        (np.zeros((3, 8, 8)), "png"),
        (np.zeros((3, 8, 8, 4), "uint8"), "jpeg 90"),
        (np.zeros((3, 8), "uint8"), "webp"),
        (np.zeros((2, 1, 16_390), "uint8"), "webp"),
        (LABELS, "levels 8"),
    ],
)
def test_codings_that_do_not_fit(tmp_path, array, name):
    with pytest.raises(ConfigError, match=f"Received: '{name}' for {array.dtype} of"):
        write_shards(array, tmp_path, coding=name)


def test_levels_of_what_is_not_finite(tmp_path):
    x = np.array([1.0, np.nan])
    with pytest.raises(DataError, match="levels are of finite numbers"):
        write_shards(x, tmp_path, coding="levels 8")


def test_a_data_set_is_written_as_its_arrays_are(tmp_path):
    options = {"shard_examples": 8, "block_examples": 3}
    arrays = write_shards((IMAGES, LABELS), tmp_path / "a", **options)
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(7)
    report = write_shards(data, tmp_path / "b", **options)
    assert report.file_bytes == arrays.file_bytes
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert write_shards(data, tmp_path / "b", **options).written == 0


def test_a_data_set_without_batches(tmp_path):
    with pytest.raises(DataError, match="must have a batch or more"):
        write_shards(
            tf.data.Dataset.from_tensor_slices(LABELS).batch(4).take(0), tmp_path
        )


@pytest.mark.parametrize("cache", [True, "file"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_cache_gives_the_same_without_the_files(tmp_path, cache, shuffle):
    folder = tmp_path / "shards"
    write_shards((IMAGES, LABELS), folder, shard_examples=8, block_examples=3)
    cache = tmp_path / "cache" if cache == "file" else cache
    data = read_shards(folder, cache=cache, shuffle=shuffle, batch_size=5)
    images, labels = joined(data)
    np.testing.assert_array_equal(images, IMAGES[labels])
    for path in folder.iterdir():
        path.unlink()
    images, again = joined(data)
    np.testing.assert_array_equal(images, IMAGES[again])
    assert sorted(again) == list(range(30))
    assert (again.tolist() == labels.tolist()) is not shuffle


def test_reading_guards_each_byte_that_matters(tmp_path):
    """A changed byte is named, or the numbers are right (a checksum's own bytes)."""
    write_shards((IMAGES[:9, :4, :4], LABELS[:9]), tmp_path, block_examples=4)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    texts = []
    for at in range(0, len(whole), 17):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
        try:
            images, labels = joined(read_shards(tmp_path))
        except (FormatError, tf.errors.OpError) as error:
            texts.append(str(error))
        else:
            np.testing.assert_array_equal(images, IMAGES[:9, :4, :4])
            np.testing.assert_array_equal(labels, LABELS[:9])
    assert len(texts) > 0.9 * len(range(0, len(whole), 17))
    assert all("00000-of-00001.tfrecord is damaged" in text for text in texts)
    path.write_bytes(whole[:-40])
    with pytest.raises(FormatError, match="it ends in a record"):
        read_shards(tmp_path)


def framed_again(path, change):
    path.write_bytes(records.framed(change(list(records.records_of(path)))))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda r: r[:-1], "its blocks have other than 9 examples"),
        (lambda r: [*r, b"abc"], "a block ends too early"),
        (lambda r: [b"{}", *r[1:]], "is damaged: its first record is no header"),
    ],
)
def test_files_with_other_blocks(tmp_path, change, text):
    write_shards(LABELS[:9], tmp_path, block_examples=4)
    (path,) = tmp_path.iterdir()
    framed_again(path, change)
    with pytest.raises(FormatError, match=text):
        read_shards(tmp_path)


def test_a_header_of_pictures_that_are_none(tmp_path):
    write_shards(IMAGES, tmp_path, coding="png")
    (path,) = tmp_path.iterdir()
    framed_again(path, lambda r: [r[0].replace(b"[20, 11, 3]", b"[20, 11, 4]"), r[1]])
    with pytest.raises(FormatError, match=r"it has 'png' of \|u1, \(20, 11, 4\)"):
        read_shards(tmp_path)


def test_checksums_are_tensorflows(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(records.framed([b"", b"123456789"]))
    data = path.read_bytes()
    assert records.masked_crc(data[:8]) == int.from_bytes(data[8:12], "little")
    assert records.masked_crc(b"123456789") == int.from_bytes(data[-4:], "little")
    # CRC-32C's check value, from its standard.
    assert (
        records.masked_crc(b"123456789")
        == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF
    )


def test_speed_counts_all(tmp_path):
    report = write_shards((IMAGES, LABELS), tmp_path)
    speed = read_speed(tmp_path, lambda: read_shards(tmp_path, batch_size=4))
    assert speed.examples == 30
    assert speed.plain_bytes == IMAGES.nbytes + LABELS.nbytes
    assert speed.file_bytes == report.file_bytes
    assert "30 examples" in str(speed)
    assert coding.is_lossy("jpeg 90")
    assert not coding.is_lossy("png")
