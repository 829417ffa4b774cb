"""TFRecord files, written and checked by TensorFlow."""

import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator

from keras_dlopt.errors import FormatError


def framed(records: Iterable[bytes]) -> bytes:
    """Records as the bytes of a TFRecord file."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "records")
        with tf.io.TFRecordWriter(path) as file:
            for record in records:
                file.write(record)
        return pathlib.Path(path).read_bytes()


def records_of(path: pathlib.Path) -> Iterator[bytes]:
    """The records of a file, each with its checksum checked.

    Raises:
        FormatError: for a file that is damaged or cut off.
    """
    import tensorflow as tf

    try:
        for record in tf.data.TFRecordDataset(str(path)):
            yield record.numpy()
    except tf.errors.OpError as error:
        raise FormatError(f"{path} is damaged: {error.message}.") from error


def first_record(path: pathlib.Path) -> bytes:
    """The first record of a file.

    Raises:
        FormatError: for a file that is damaged or empty.
    """
    for record in records_of(path):
        return record
    raise FormatError(f"{path} is empty.")
