"""Coders of the elements of pruned arrays by their neighbours; see `contexts.py`."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from keras_dlopt.codecs import contexts
from keras_dlopt.codecs.coder import Recorded, Values
from keras_dlopt.codecs.codes import MAX_CODE, read_scale
from keras_dlopt.codecs.dtypes import by_value
from keras_dlopt.codecs.reader import REPAIR, Reader
from keras_dlopt.codecs.values import has_codebook, read_book, write_book
from keras_dlopt.errors import FormatError

PRUNED = 0.7  # share of non-zeros up to which it is tried


class NeighbourIndices(Recorded):
    """Codebook, and the place of each element in it, less the place of zero."""

    name: ClassVar[str] = "context codebook"

    def cost(self, values: Values) -> int | None:
        if not has_codebook(values) or values.unique[0] != 0:
            return None
        if not _is_pruned(values, values.bits):
            return None
        order = by_value(values.unique, values.dtype)
        rank = np.empty(order.size, np.int64)
        rank[order] = np.arange(order.size)
        codes = rank[values.index] - rank[0]
        return _cost(self, values, codes, write_book(values))

    def read(
        self, reader: Reader, count: int, dtype: np.dtype, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, None]:
        book = read_book(reader, dtype)
        codes = contexts.read(reader, count, shape)
        zero = np.flatnonzero(book == 0)[:1]
        codes += zero.sum()
        low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
        if not zero.size or low < 0 or high >= book.size:
            raise FormatError(
                f"The file is damaged: indices {low} to {high} into a codebook of "
                f"{book.size} values, {zero.size} of them zero. {REPAIR}"
            )
        return book[codes], None


@dataclasses.dataclass(frozen=True)
class NeighbourCodes(Recorded):
    """The codes of a grid.

    Args:
        read_record: reads the record of a scale.
    """

    name: ClassVar[str] = "context grid"
    read_record: Callable[[Reader], np.ndarray]

    def cost(self, values: Values) -> int | None:
        codes = values.codes
        if codes is None or not _is_pruned(values, codes):
            return None
        if max(-int(codes.min()), int(codes.max())) >= MAX_CODE:
            return None
        return _cost(self, values, codes.astype(np.int64), values.scale)

    def read(
        self, reader: Reader, count: int, dtype: np.dtype, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        scale = read_scale(reader, self.read_record, dtype, shape)
        codes = contexts.read(reader, count, shape)
        if count and int(np.abs(codes).max()) > MAX_CODE:
            raise FormatError(
                f"The file is damaged: a grid code of {int(np.abs(codes).max())}. "
                f"{REPAIR}"
            )
        return codes.astype(np.int32) if count else codes, scale


def _is_pruned(values: Values, elements: np.ndarray) -> bool:
    if values.places is not None or len(values.shape) < 2:
        return False
    if not contexts.LEAST <= elements.size <= contexts.LARGEST:
        return False
    return bool(np.count_nonzero(elements) <= PRUNED * elements.size)


def _cost(
    coder: Recorded, values: Values, codes: np.ndarray, head: bytes
) -> int | None:
    stream = contexts.write(codes, values.shape, values.bits.nbytes)
    return None if stream is None else coder.kept(values, head + stream)
