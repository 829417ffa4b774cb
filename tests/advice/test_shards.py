"""What shards of data advise, followed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dlopt.data import read_shards, write_shards

IMAGES = np.random.default_rng(0).integers(0, 4, (50, 6, 5, 1)).astype("uint8")
LABELS = (np.arange(50) % 10).astype("int32")


def joined(data):
    return np.concatenate(list(data.as_numpy_iterator()))


@pytest.mark.advice("data/shards/given.py", "Give texts as numbers, such as keras.la")
def test_texts_are_numbers_first(tmp_path, told):
    words = np.array(["a", "b", "a"])
    with told():
        write_shards(words, tmp_path)
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"])
    numbers = np.asarray(lookup(tf.constant(words)))
    assert write_shards(numbers, tmp_path).examples == 3


@pytest.mark.advice("data/shards/writing.py", "Choose an empty folder, or remove them.")
def test_a_folder_of_another_data_set(tmp_path, told):
    write_shards(IMAGES, tmp_path, shard_examples=20)
    with told():
        write_shards(IMAGES, tmp_path, shard_examples=10)
    for path in tmp_path.iterdir():
        path.unlink()
    assert write_shards(IMAGES, tmp_path, shard_examples=10).files == 5


@pytest.mark.advice("data/shards/whole.py", "Write them with write_shards().")
@pytest.mark.advice("data/shards/whole.py", "Run write_shards() with the same data ag")
def test_missing_shards_are_named(tmp_path, told):
    with told():
        read_shards(tmp_path)
    options = {"shard_examples": 20}
    write_shards(LABELS, tmp_path, **options)
    (tmp_path / "shard-00001-of-00003.tfrecord").unlink()
    with told():
        read_shards(tmp_path)
    with pytest.warns(UserWarning, match="00001-of-00003.tfrecord is missing. Its exa"):
        data = read_shards(tmp_path, damaged="skip")
    expected = np.concatenate([LABELS[:20], LABELS[40:]])
    np.testing.assert_array_equal(joined(data), expected)
    write_shards(LABELS, tmp_path, **options)
    np.testing.assert_array_equal(joined(read_shards(tmp_path)), LABELS)


@pytest.mark.advice("data/shards/given.py", "Take a part of it with .take(batches).")
def test_a_data_set_without_end(told, tmp_path):
    data = tf.data.Dataset.from_tensor_slices(LABELS).batch(10).repeat()
    with told():
        write_shards(data, tmp_path)
    assert write_shards(data.take(3), tmp_path).examples == 30


@pytest.mark.advice("data/shards/given.py", "Give one that is the same each time.")
def test_a_data_set_that_changes(told, tmp_path):
    calls = []

    def numbers():
        calls.append(0)
        yield from range(len(calls) + 3)

    spec = tf.TensorSpec((), tf.int64)
    data = tf.data.Dataset.from_generator(numbers, output_signature=spec).batch(2)
    with told():
        write_shards(data, tmp_path)
    kept = data.cache()
    assert len(joined(kept)) == write_shards(kept, tmp_path / "again").examples


@pytest.mark.advice("data/shards/given.py", "Make them so, as keras.layers.Resizing do")
def test_a_data_set_of_several_sizes(told, tmp_path):
    def images():
        yield np.zeros((2, 4, 4, 1), "float32")
        yield np.zeros((2, 6, 4, 1), "float32")

    spec = tf.TensorSpec((None, None, 4, 1))
    data = tf.data.Dataset.from_generator(images, output_signature=spec)
    with told():
        write_shards(data, tmp_path)
    same = data.map(keras.layers.Resizing(5, 5))
    assert write_shards(same, tmp_path).examples == 4


@pytest.mark.advice("data/shards/writing.py", "Give None for those that are to be code")
def test_codings_for_each_array(told, tmp_path):
    with told():
        write_shards((IMAGES, LABELS), tmp_path, coding="png")
    report = write_shards((IMAGES, LABELS), tmp_path, coding=("png", None))
    assert report.filters[0] == "png"
