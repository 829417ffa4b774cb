"""Bytes, varints, and a reader that checks every size before it is used."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_dlopt.errors import FormatError

REPAIR = "Restore the file from a copy or save it again."


def varint(value: int) -> bytes:
    """An unsigned integer in groups of 7 bits, lowest first (LEB128).

    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def zigzag(values: Any) -> Any:
    """Maps 0, -1, 1, -2, 2 ... to 0, 1, 2, 3, 4 ...; works on integers and arrays."""
    return np.where(np.asarray(values) < 0, -2 * values - 1, 2 * values)


def unzigzag(values: Any) -> Any:
    """The inverse of `zigzag`."""
    values = np.asarray(values)
    return np.where(values % 2 == 1, -(values + 1) // 2, values // 2)


class Reader:
    """Reads a byte string front to back.

    It keeps two accounts: `allowance`, the bytes that decoded arrays may still take,
    and `spent`, the bits consumed per kind of content.

    Args:
        data: the bytes, or what gives the like of bytes for a slice.
        max_bytes: limit for the decoded contents.
    """

    def __init__(self, data: Any, *, max_bytes: int):
        self.data = data
        self.position = 0
        self.max_bytes = max_bytes
        self.allowance = max_bytes
        self.spent: dict[str, int] = {}
        self._marked = 0

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self.data) - self.position

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes.

        Raises:
            FormatError: if fewer are left.
        """
        start = self.position
        self.skip(count, what)
        return bytes(self.data[start : self.position])

    def skip(self, count: int, what: str) -> None:
        """Passes over `count` bytes.

        Raises:
            FormatError: if fewer are left.
        """
        if count > self.left:
            raise FormatError(
                f"The file is damaged: {what} needs {count} bytes, but only "
                f"{self.left} are left. {REPAIR}"
            )
        self.position += count

    def varint(self, what: str) -> int:
        """The next varint, at most 2**63 - 1."""
        value = shift = 0
        while shift < 63:
            byte = self.take(1, what)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise FormatError(
            f"The file is damaged: the number for {what} is longer than 9 bytes. "
            f"{REPAIR}"
        )

    def reserve(self, count: int, what: str) -> None:
        """Takes `count` bytes off the allowance, before they are allocated.

        Raises:
            FormatError: if the contents would exceed `max_bytes`.
        """
        if count > self.allowance:
            raise self.too_large(count, what)
        self.allowance -= count

    def check_temporary(self, count: int, what: str) -> None:
        """Refuses working memory of more than `max_bytes` at once."""
        if count > self.max_bytes:
            raise self.too_large(count, f"decoding {what}")

    def too_large(self, count: int, what: str) -> FormatError:
        """The error for contents that would exceed `max_bytes`."""
        return FormatError(
            f"Refused: {what} would take {count} bytes, and the contents of this "
            f"file may take {self.max_bytes} in all ({self.allowance} are left). "
            "If the file comes from a source you trust, pass a larger max_bytes."
        )

    def account(self, kind: str, *, table_bits: int = 0) -> None:
        """Books what was read since the last call under `kind` (and `"tables"`)."""
        bits = 8 * (self.position - self._marked) - table_bits
        self._marked = self.position
        self.spent[kind] = self.spent.get(kind, 0) + bits
        if table_bits:
            self.spent["tables"] = self.spent.get("tables", 0) + table_bits

    @contextlib.contextmanager
    def lump(self, kind: str) -> Iterator[None]:
        """Books everything read inside under one kind."""
        spent, marked = dict(self.spent), self._marked
        yield
        self.spent, self._marked = spent, marked
        self.account(kind)
