"""TFRecord files, written and checked by TensorFlow."""

import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator

from keras_dlopt.errors import FormatError

_HEAD = 12  # bytes before a record: its length, and a checksum of that


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
    """The first record of a file, without its checksum, which whoever reads on checks.

    Raises:
        FormatError: for a file that is cut off or empty.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
        length = int.from_bytes(head[:8], "little")
        # What a file announces is no reason to ask for more memory than it has bytes.
        if len(head) < _HEAD or length > path.stat().st_size:
            raise FormatError(f"{path} is damaged: it ends in its first record.")
        record = file.read(length)
    if len(record) < length:
        raise FormatError(f"{path} is damaged: it ends in its first record.")
    return record
