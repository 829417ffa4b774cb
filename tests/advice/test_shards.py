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


@pytest.mark.advice("data/shards/writing.py", "Give texts as numbers, such as keras.la")
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


@pytest.mark.advice("data/shards/reading.py", "Write them with write_shards().")
@pytest.mark.advice(
    "data/shards/reading.py", "Run write_shards() with the same data ag"
)
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
