"""The arrays of a file, decoded in turn, in threads where it pays."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from keras_dlopt.codecs import planes
from keras_dlopt.codecs.entropy import (
    entropy_bits,
    mask_entropy_bits,
    symbol_entropy_bits,
)
from keras_dlopt.codecs.reader import REPAIR, Reader
from keras_dlopt.codecs.record import Decoded
from keras_dlopt.codecs.tensor import decode_tensor
from keras_dlopt.errors import FormatError
from keras_dlopt.storage.delta import NAMES, SAME, Origin, applied
from keras_dlopt.storage.parallel import in_parallel
from keras_dlopt.storage.records import Record
from keras_dlopt.storage.repeats import Repeats, damaged

PIECE = 2**20  # symbols that are counted at once


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One array in the file, and the bits it takes by kind of content.

    Attributes:
        path: of the variable, or the layer's path and the key of its hook.
        array: the values.
        method: such as `"raw"` or `"sparse codebook"`.
        bits: bits in the file by kind of content.
        bounds: share of zeros, and the order-0 bounds of positions and of values.
    """

    path: str
    array: np.ndarray
    method: str
    bits: dict[str, int]
    bounds: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Stored:
    """A file whose arrays may still have to be decoded.

    Attributes:
        header: the description and all names.
        records: one for each array, or
        reader: what stands before them, where they have to be read in turn.
        architecture_bytes: size of the header's section.
        same: arrays without a record of their own.
        origin: what comes from a base.
    """

    header: dict[str, Any]
    records: list[Record] | None
    reader: Reader
    architecture_bytes: int
    same: Repeats = dataclasses.field(default_factory=dict)
    origin: Origin | None = None

    def recorded(self) -> list[int]:
        """The places of the arrays that have a record."""
        places = range(len(self.header["paths"]))
        known = self.origin.places if self.origin is not None else {}
        return [
            i
            for i in places
            if i not in self.same and (i not in known or known[i][1] != SAME)
        ]


def decoded(stored: Stored, *, bounds: bool) -> Iterator[StoredTensor]:
    """The arrays of a file in turn, each decoded once, in threads where it pays.

    Raises:
        FormatError: if one is damaged, or bytes follow the last.
    """
    same, paths = stored.same, stored.header["paths"]
    own = _recorded(stored, [paths[i] for i in stored.recorded()], bounds)
    if stored.origin is not None:
        yield from _from_base(stored, stored.origin, own)
        return
    if not same:
        yield from own
        return
    wanted = {of for of, _ in same.values()}
    kept: dict[int, StoredTensor] = {}
    for i, path in enumerate(paths):
        tensor = repeated(path, kept, *same[i]) if i in same else next(own)
        if i in wanted:
            kept[i] = tensor
        if i in same or stored.records is not None:
            stored.reader.reserve(tensor.array.nbytes, f"a repeat of {path!r}")
        yield tensor
    yield from own  # nothing, or an error for what follows


def _from_base(
    stored: Stored, origin: Origin, own: Iterator[StoredTensor]
) -> Iterator[StoredTensor]:
    """The arrays of a file that is a difference."""
    for i, path in enumerate(stored.header["paths"]):
        based = origin.of(i)
        if based is None:
            yield next(own)
            continue
        array, how = based
        if how == SAME:
            zeros = 1 - np.count_nonzero(array) / max(array.size, 1)
            yield StoredTensor(path, array, "as in the base", {}, (zeros, 0.0, 0.0))
            continue
        tensor = next(own)
        array = applied(tensor.array, array, how)
        method = f"{NAMES[how]}{tensor.method}"
        yield dataclasses.replace(tensor, array=array, method=method)
    yield from own  # nothing, or an error for what follows


def _recorded(stored: Stored, paths: list[str], bounds: bool) -> Iterator[StoredTensor]:
    """The arrays that have a record."""
    if stored.records is not None:
        yield from in_parallel(
            lambda pair: _decoded(pair[0], pair[1], bounds),
            zip(paths, stored.records, strict=True),
            work=sum(record.size for record in stored.records),
            temporary=lambda pair: pair[1].temporary,
            budget=stored.reader.max_bytes,
        )
        return
    reader = stored.reader
    for path in paths:
        yield _read_tensor(reader, path, bounds)
    if reader.left:
        raise FormatError(
            f"The file is damaged: {reader.left} bytes follow the last variable. "
            f"{REPAIR}"
        )


def repeated(
    path: str, known: Mapping[int, StoredTensor], place: int, turned: int
) -> StoredTensor:
    """An array that was stored before, as it is or transposed."""
    of = known[place]
    if turned and of.array.ndim != 2:
        raise damaged("transposes of variables")
    array = np.ascontiguousarray(of.array.T) if turned else of.array
    method = f"{'transpose of' if turned else 'same as'} {of.path}"
    return StoredTensor(path, array, method, {}, (of.bounds[0], 0.0, 0.0))


def _decoded(path: str, record: Record, bounds: bool) -> StoredTensor:
    return _stored_tensor(path, record.decode(), record.spent, bounds)


def _read_tensor(reader: Reader, path: str, bounds: bool) -> StoredTensor:
    reader.spent = {}
    found = decode_tensor(reader)
    return _stored_tensor(path, found, reader.spent, bounds)


def _stored_tensor(
    path: str, found: Decoded, bits: dict[str, int], bounds: bool
) -> StoredTensor:
    by_byte = found.method.endswith("bytes")
    return StoredTensor(
        path=path,
        array=found.array,
        method=found.method,
        bits=bits,
        bounds=_bounds(found.symbols, by_byte) if bounds else (0.0, 0.0, 0.0),
    )


def _bounds(symbols: np.ndarray, by_byte: bool = False) -> tuple[float, float, float]:
    size, kept = symbols.size, int(np.count_nonzero(symbols))
    if by_byte:
        some = symbols if kept == size else symbols[symbols != 0]
        values = sum(map(entropy_bits, planes.counts(some)))
    elif symbols.dtype.itemsize > 2:
        values = symbol_entropy_bits(symbols[symbols != 0])
    else:
        flat = symbols.reshape(-1)
        low = int(flat.min(initial=0))
        counts = np.zeros(int(flat.max(initial=0)) - low + 1, np.int64)
        for start in range(0, size, PIECE):
            part = flat[start : start + PIECE].astype(np.int64) - low
            counts += np.bincount(part, minlength=counts.size)
        counts[-low] = 0
        values = entropy_bits(counts)
    return 1 - kept / size if size else 0.0, mask_entropy_bits(size, kept), values
