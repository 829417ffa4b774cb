"""Compressed shards: the same numbers in the same order, or a named fault."""

import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from keras_dlopt.data import load, read_shards, verify_shards, write_shards
from keras_dlopt.data.shards import coding, layout, records
from keras_dlopt.errors import ConfigError, DataError, FormatError

tf = pytest.importorskip("tensorflow")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 4, (50, 6, 5, 1)).astype("uint8")
LABELS = (np.arange(50) % 10).astype("int32")


def joined(data):
    """All batches of a data set as arrays, in its structure."""
    batches = list(data.as_numpy_iterator())
    if isinstance(batches[0], dict):
        return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    if isinstance(batches[0], tuple):
        return tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))
    return np.concatenate(batches)


@pytest.mark.parametrize("drop", [False, True])
def test_order_and_numbers_stay(tmp_path, drop):
    report = write_shards(
        (IMAGES, LABELS), tmp_path, shard_examples=20, block_examples=8
    )
    assert (report.examples, report.files, report.written) == (50, 3, 3)
    assert report.plain_bytes == IMAGES.nbytes + LABELS.nbytes
    sizes = [p.stat().st_size for p in tmp_path.iterdir()]
    assert report.file_bytes == sum(sizes)
    data = read_shards(tmp_path, batch_size=7, drop_remainder=drop)
    assert int(data.cardinality()) == (7 if drop else 8)
    images, labels = joined(data)
    np.testing.assert_array_equal(images, IMAGES[: 49 if drop else 50])
    np.testing.assert_array_equal(labels, LABELS[: 49 if drop else 50])
    assert (images.dtype, labels.dtype) == ("uint8", "int32")
    assert verify_shards(tmp_path) == 50
    assert "50 examples in 3 shards" in str(report)


def test_images_between_0_and_1_are_stored_as_bytes(tmp_path):
    x = IMAGES.astype("float32") / 255
    report = write_shards({"x": x, "y": LABELS}, tmp_path / "a")
    assert set(report.filters) & {"of 255", "of 255, rows"}
    seen = joined(read_shards(tmp_path / "a"))
    np.testing.assert_array_equal(seen["x"], x)
    np.testing.assert_array_equal(seen["y"], LABELS)
    # A later example that is no multiple of 1/255 changes its own shard's filter.
    x = x.copy()
    x[45, 0, 0, 0] = 0.123
    write_shards(x, tmp_path / "b", shard_examples=25, block_examples=5)
    np.testing.assert_array_equal(joined(read_shards(tmp_path / "b")), x)


def test_an_order_that_is_drawn_holds_each_example_once(tmp_path):
    write_shards((IMAGES, np.arange(50)), tmp_path, shard_examples=20, block_examples=5)
    data = read_shards(tmp_path, shuffle=True, seed=1, batch_size=8)
    orders = [joined(data)[1].tolist() for _ in range(2)]
    assert orders[0] != orders[1] != list(range(50))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    again = read_shards(tmp_path, shuffle=True, seed=1, batch_size=8)
    assert joined(again)[1].tolist() == orders[0]


def test_a_break_is_taken_up(tmp_path):
    options = {"shard_examples": 20, "block_examples": 8}
    write_shards((IMAGES, LABELS), tmp_path, **options)
    paths = sorted(tmp_path.iterdir())
    kept = [p.stat().st_mtime_ns for p in paths]
    paths[1].unlink()
    paths[2].write_bytes(b"half")
    report = write_shards((IMAGES, LABELS), tmp_path, **options)
    assert report.written == 2
    assert paths[0].stat().st_mtime_ns == kept[0]
    assert verify_shards(tmp_path) == 50
    # Other numbers are written anew, wherever they differ.
    changed = LABELS.copy()
    changed[49] += 1
    assert write_shards((IMAGES, changed), tmp_path, **options).written == 1


@settings(max_examples=60)
@given(
    arrays_of.arrays(
        st.sampled_from(["uint8", "int16", "int64", "float16", "float32", "bool"]),
        arrays_of.array_shapes(min_dims=1, max_dims=4, max_side=5),
    )
)
def test_each_filter_is_undone(array):
    for name in coding.FILTERS:
        if name not in coding.filters(array):
            continue
        data = coding.encoded(array, name, 3)
        if data is not None:
            seen = coding.decoded(data, name, array.dtype.str, array.shape)
            assert seen.dtype == array.dtype
            assert seen.tobytes() == array.tobytes()


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="arrays of one length, with an example or mo"):
        write_shards((IMAGES, LABELS[:3]), tmp_path)
    with pytest.raises(DataError, match="arrays of one length"):
        write_shards(np.zeros((0, 3)), tmp_path)
    with pytest.raises(ConfigError, match="level must be"):
        write_shards(IMAGES, tmp_path, level=23)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        write_shards(IMAGES, tmp_path / "file" / "deeper")


def test_each_byte_of_a_shard_is_guarded(tmp_path):
    write_shards((IMAGES[:9], LABELS[:9]), tmp_path, shard_examples=5, block_examples=2)
    path = tmp_path / "shard-00001-of-00002.tfrecord"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
        with pytest.raises(FormatError, match="00001-of-00002.tfrecord is damaged"):
            verify_shards(tmp_path)
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match="00001-of-00002.tfrecord is (dam|empty)"):
            verify_shards(tmp_path)
    with pytest.warns(UserWarning, match="is damaged.* Its examples are left out"):
        labels = joined(read_shards(tmp_path, damaged="skip"))[1]
    np.testing.assert_array_equal(labels, LABELS[:5])
    (tmp_path / "shard-00000-of-00002.tfrecord").unlink()
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(DataError, match="None of the 2 shards in .* is whole"),
    ):
        read_shards(tmp_path, damaged="skip")


def rewritten(path: pathlib.Path, change, blocks=None):
    """A shard with right checksums and another header or other blocks."""
    first, *rest = records.records_of(path)
    head = json.loads(first)
    change(head)
    record = json.dumps(head).encode()
    path.write_bytes(records.framed([record, *(rest if blocks is None else blocks)]))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda h: h.update(version=2), "of another format or version"),
        (lambda h: h.update(format="other"), "of another format or version"),
        (lambda h: h.update(examples=-1), "it counts -1"),
        (lambda h: h.update(examples=True), "it counts True"),
        (lambda h: h.update(extra=1), "no header of a shard"),
        (lambda h: h["arrays"].pop(), "another number of arrays"),
        (lambda h: h["arrays"][0].update(dtype="O"), "an array of 'O'"),
        (lambda h: h["arrays"][0].update(filter="exec"), "'exec'"),
        (lambda h: h["arrays"][0].update(shape=[-3, 2]), r"the shape \(-3, 2\)"),
        (lambda h: h["arrays"][0].update(shape=[1 << 40]), "asks for an array"),
        (lambda h: h["arrays"][0].update(shape=[6, 5, 2]), "another size than its fi"),
        (lambda h: h["arrays"][1].update(digest=""), "other numbers than were written"),
        (lambda h: h.update(structure={"set": []}), "neither tuple nor dict"),
        (lambda h: h.update(examples=3), "a block has 5 of 3 examples"),
    ],
)
def test_hostile_headers(tmp_path, change, text):
    write_shards((IMAGES[:5], LABELS[:5]), tmp_path)
    rewritten(tmp_path / "shard-00000-of-00001.tfrecord", change)
    with pytest.raises(FormatError, match=text):
        verify_shards(tmp_path)


def test_hostile_blocks(tmp_path):
    write_shards((IMAGES[:5], LABELS[:5]), tmp_path)
    path = tmp_path / "shard-00000-of-00001.tfrecord"
    _, block = records.records_of(path)
    for other, text in (
        (block + b"more", "longer or shorter than it says"),
        (block[:4], "ends too early"),
        (block[:20] + b"\0" * (len(block) - 20), "damaged|another size"),
    ):
        rewritten(path, lambda h: None, [other])
        with pytest.raises(FormatError, match=text):
            verify_shards(tmp_path)
    # While it is read, the fault ends the iteration and names the file.
    data = read_shards(tmp_path)
    with pytest.raises(tf.errors.OpError, match="00000-of-00001.tfrecord is damaged"):
        list(data)


def test_structures_are_kept():
    structure = {"a": (1, {"b": 2}), "c": 3}
    described = layout.described(structure)
    assert layout.packed(described, layout.flat(structure)) == structure
    assert layout.count_of(described) == 3


def test_digits_train_from_shards(tmp_path):
    import keras

    digits = load("digits")
    report = write_shards(digits.train, tmp_path)
    assert report.file_bytes < report.plain_bytes / 4
    data = read_shards(tmp_path, batch_size=64, shuffle=True, drop_remainder=True)
    model = keras.Sequential(
        [
            keras.Input(digits.input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    history = model.fit(data, epochs=3, verbose=0, shuffle=False).history
    assert history["loss"][-1] < history["loss"][0]


def test_files_under_other_names_are_refused(tmp_path):
    options = {"shard_examples": 5}
    write_shards(LABELS[:10], tmp_path, **options)
    a, b = sorted(tmp_path.iterdir())
    whole = a.read_bytes(), b.read_bytes()
    a.write_bytes(whole[1])
    b.write_bytes(whole[0])
    with pytest.raises(FormatError, match="00000-of-00002.tfrecord holds shard 1 of 2"):
        read_shards(tmp_path)
    with pytest.raises(FormatError, match="holds shard 1 of 2"):
        verify_shards(tmp_path)
    other = tmp_path / "other"
    write_shards({"y": LABELS[:10]}, other, **options)
    a.write_bytes(whole[0])
    b.write_bytes((other / b.name).read_bytes())
    with pytest.raises(FormatError, match="00001-of-00002.tfrecord holds shard 1 of 2"):
        read_shards(tmp_path)
