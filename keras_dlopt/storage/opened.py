"""A compressed file that stays on the disk: its arrays one by one, when wanted."""

import hashlib
import io
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from keras_dlopt.codecs.container import (
    CHECKSUM_BYTES,
    MAX_BYTES,
    broken,
    check_start,
    limit_of,
    sections_of,
    version_of,
)
from keras_dlopt.errors import ConfigError, FormatError
from keras_dlopt.storage.contents import stored_in
from keras_dlopt.storage.decoding import StoredTensor, decoded, repeated

PIECE = 2**20  # bytes that are read at a time for the checksum


class _Span:
    """Part of a file in the manner of a memoryview; `bytes(span)` reads it."""

    def __init__(self, file: io.FileIO, start: int, stop: int):
        self._file, self._start, self._stop = file, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, part: slice) -> "_Span":
        start, stop, _ = part.indices(len(self))
        start, stop = self._start + start, self._start + max(stop, start)
        return _Span(self._file, start, stop)

    def __bytes__(self) -> bytes:
        self._file.seek(self._start)
        found = self._file.read(len(self)) if len(self) else b""
        if len(found) < len(self):
            raise FormatError(
                f"The file was cut short while it was open: {len(self)} bytes should "
                f"follow after {self._start}. Open it again."
            )
        return found


class CompressedFile:
    """The arrays of a file of `save_compressed`, each decoded when it is read.

    Opening a file with an index (those from 64 KiB on) reads its header and the heads
    of its arrays; smaller files are read at once. Nothing is built, so a model that
    does not fit into memory can be looked at, and one weight be had without the others.
    The checksum of the whole file is compared before the first array is read; what is
    listed before has not been compared with it.

    Args:
        path: a file written by `save_compressed`.
        max_bytes: limit for the arrays together; as in `load_compressed`.

    Attributes:
        names: the paths of the variables, in their order; two can be the same.

    Raises:
        FormatError: if the file is damaged, hostile or too large.
        ConfigError: if there is no such file.

    Example:
        >>> import keras, tempfile, os
        >>> from keras_dlopt.storage import save_compressed
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.dlopt")
        ...     _ = save_compressed(model, path)
        ...     with CompressedFile(path) as file:
        ...         len(file.names), file.shape(0), file.read(1).tolist()
        (2, (4, 2), [0.0, 0.0])
    """

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int | None = None):
        try:
            self._file = io.FileIO(Path(path))
        except OSError as error:
            raise ConfigError(
                f"Cannot read {str(path)!r}: {error.strerror or error}. Pass the path "
                "of a file that exists."
            ) from error
        try:
            self._open(max_bytes)
        except BaseException:
            self.close()
            raise

    def _open(self, max_bytes: int | None) -> None:
        size = os.fstat(self._file.fileno()).st_size
        self._whole = _Span(self._file, 0, size)
        most = MAX_BYTES if max_bytes is None else max_bytes
        if size > most:
            raise FormatError(
                f"{str(self._file.name)!r} is larger than max_bytes={most}. If it "
                "comes from a source you trust, pass a larger max_bytes."
            )
        limit = limit_of(size) if max_bytes is None else max_bytes
        check_start(self._whole)
        self._checked = False
        sections, version = sections_of(self._whole), version_of(self._whole)
        self._stored = stored_in(sections, version, max_bytes=limit)
        self.names = tuple(self._stored.header["paths"])
        self._tensors: list[StoredTensor] | None = None
        if self._stored.records is None:
            self._check()
            self._tensors = list(decoded(self._stored, bounds=False))
        own = [i for i in range(len(self.names)) if i not in self._stored.same]
        self._place = {array: record for record, array in enumerate(own)}

    def shape(self, name: str | int) -> tuple[int, ...]:
        """The shape of an array, by its path or its place in `names`."""
        shape, _ = self._head(name)
        return shape

    def dtype(self, name: str | int) -> np.dtype:
        """The dtype of an array."""
        _, dtype = self._head(name)
        return dtype

    def stored_bytes(self, name: str | int) -> int:
        """Bytes that an array takes in the file; 0 where it repeats another."""
        place = self._at(name)
        if self._tensors is not None:
            return sum(self._tensors[place].bits.values()) // 8
        return len(self._record(place).data) if place in self._place else 0

    def read(self, name: str | int) -> np.ndarray:
        """An array, decoded anew at each call.

        Args:
            name: its path, or its place in `names`.

        Raises:
            FormatError: if the file is damaged.
            ConfigError: if there is no such array, or the file is closed.
        """
        place = self._at(name)
        if self._tensors is not None:
            return self._tensors[place].array.copy()
        if self._file.closed:
            raise ConfigError(
                f"{str(self._file.name)!r} is closed. Read inside the with block, or "
                "open it again."
            )
        self._check()
        of, turned = self._stored.same.get(place, (place, 0))
        array: np.ndarray = self._record(of).decode().array
        if of == place:
            return array
        known = StoredTensor(self.names[of], array, "", {}, (0.0, 0.0, 0.0))
        return repeated(self.names[place], {of: known}, of, turned).array

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "CompressedFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _at(self, name: str | int) -> int:
        places = range(len(self.names))
        if isinstance(name, str):
            found = [i for i in places if self.names[i] == name]
        else:
            found = [i for i in places if i == name]
        if len(found) != 1:
            raise ConfigError(
                f"{name!r} stands for {len(found)} of the {len(self.names)} arrays of "
                f"{str(self._file.name)!r}. Pass one of names, such as "
                f"{list(self.names[:3])}, or the place of one in it."
            )
        return found[0]

    def _record(self, place: int) -> Any:
        records = self._stored.records
        assert records is not None
        return records[self._place[place]]

    def _head(self, name: str | int) -> tuple[tuple[int, ...], np.dtype]:
        place = self._at(name)
        if self._tensors is not None:
            array = self._tensors[place].array
            return array.shape, array.dtype
        of, turned = self._stored.same.get(place, (place, 0))
        record = self._record(of)
        shape: tuple[int, ...] = record.shape
        return (shape[::-1] if turned else shape), record.dtype

    def _check(self) -> None:
        """Compares the checksum, once."""
        if self._checked:
            return
        size = len(self._whole)
        digest = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
        for start in range(0, size - CHECKSUM_BYTES, PIECE):
            stop = min(start + PIECE, size - CHECKSUM_BYTES)
            digest.update(bytes(self._whole[start:stop]))
        if digest.digest() != bytes(self._whole[size - CHECKSUM_BYTES :]):
            raise broken(size)
        self._checked = True
