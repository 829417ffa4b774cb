"""The coder of arrays whose blocks are the candidates of a number."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from keras_dlopt.codecs import candidates
from keras_dlopt.codecs.coder import Recorded, Values
from keras_dlopt.codecs.codes import read_scale
from keras_dlopt.codecs.reader import REPAIR, Reader, varint
from keras_dlopt.errors import FormatError

MOST = 16  # bits of a number that is looked for
PIECE = 2**15  # places that are decoded at once: few stay in the cache
CHANCE = 4  # places that may fit a number by chance


@dataclasses.dataclass(frozen=True)
class RandomCode(Recorded):
    """For each block of a grid's codes the number of its candidates.

    Args:
        read_record: reads the record of a scale.
    """

    name: ClassVar[str] = "random code"
    read_record: Callable[[Reader], np.ndarray]

    def cost(self, values: Values) -> int | None:
        codes = values.codes
        if codes is None or values.places is not None or values.scale[0] >> 4:
            return None  # no grid, or one of several scales
        found = chosen(codes)
        if found is None:
            return None
        length, numbers = found
        bits = max(1, int(numbers.max()).bit_length())
        bits = max(bits, -(-length // candidates.PER_BIT))
        if bits > candidates.BITS:
            return None
        spread = numbers[:, None] >> np.arange(bits - 1, -1, -1) & 1
        stream = np.packbits(spread.astype(np.uint8)).tobytes()
        record = values.scale + bytes([bits]) + varint(length) + stream
        return self.kept(values, record)

    def read(
        self, reader: Reader, count: int, dtype: np.dtype, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        scale = read_scale(reader, self.read_record, dtype, shape)
        bits = reader.take(1, "the bits of a random code")[0]
        length = reader.varint("the length of a block")
        if (
            not 1 <= bits <= candidates.BITS
            or not 1 <= length <= min(count, candidates.PER_BIT * bits)
            or count > candidates.PLACES
        ):
            raise FormatError(
                f"The file is damaged: a random code of {bits} bits for each {length} "
                f"of {count} elements. {REPAIR}"
            )
        reader.check_temporary(40 * count, "a random code")
        blocks = -(-count // length)
        data = reader.take(-(-blocks * bits // 8), "the numbers of a random code")
        reader.account("values")
        spread = np.unpackbits(np.frombuffer(data, np.uint8))[: blocks * bits]
        numbers = spread.reshape(blocks, bits) @ (1 << np.arange(bits - 1, -1, -1))
        codes, order = np.empty(count, np.int32), candidates.scattered(count)
        for start in range(0, count, PIECE):
            places = np.arange(start, min(start + PIECE, count))
            found = candidates.of(numbers[places // length], places)
            codes[order[start : start + PIECE]] = found
        return codes, scale


def chosen(codes: np.ndarray) -> tuple[int, np.ndarray] | None:
    """The length of blocks and the number of each, if the codes are candidates.

    Args:
        codes: whole numbers of any shape, at least one.
    """
    if codes.size > candidates.PLACES:
        return None
    if max(-int(codes.min()), int(codes.max())) > candidates.LARGEST:
        return None
    wanted = codes.reshape(-1)[candidates.scattered(codes.size)]
    smallest = _smallest(wanted)
    for bits in range(4, MOST + 1):
        run = int(np.searchsorted(smallest, 2**bits))
        # What comes after the first block may fit its number by chance.
        for length in range(run, max(run - CHANCE, bits // candidates.DEAR), -1):
            numbers = _numbers(wanted, length, bits)
            if numbers is not None:
                return length, numbers
    return None


def _smallest(wanted: np.ndarray) -> np.ndarray:
    """The smallest number for the first code, the first two, and so on, while any."""
    left, found = np.arange(2**MOST), []
    for place, code in enumerate(wanted):
        left = left[candidates.of(left, place) == code]
        found.append(left[:1])
        if left.size < 2:
            break
    if left.size:
        same = candidates.of(left[0], np.arange(wanted.size)) == wanted
        run = wanted.size if same.all() else int(np.argmin(same))
        found += [left] * (run - len(found))
    return np.concatenate(found)


def _numbers(wanted: np.ndarray, length: int, bits: int) -> np.ndarray | None:
    """The number of each block of so many codes, if all have one."""
    numbers = np.zeros(-(-wanted.size // length), np.int64)
    for block in range(numbers.size):
        some = wanted[block * length : (block + 1) * length]
        number = _number(some, block * length, bits)
        if number is None:
            return None
        numbers[block] = number
    return numbers


def _number(some: np.ndarray, start: int, bits: int) -> int | None:
    """The first of so many bits whose candidates these are."""
    left = np.arange(2**bits)
    for place, code in enumerate(some, start):
        left = left[candidates.of(left, place) == code]
        if left.size < 2:
            break
    if not left.size:
        return None
    same = candidates.of(left[0], start + np.arange(some.size)) == some
    return int(left[0]) if same.all() else None
