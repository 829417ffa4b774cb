"""A decoder of version 1 files written from docs/format.md alone, one bit at a time.

It shares no code with the package and trusts its input: for tests only.
"""

import hashlib
import json
import math
import zlib
from fractions import Fraction

import ml_dtypes
import numpy as np

from reference.huffman import canonical

DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32"),
    *("uint64", "int64", "float16", "bfloat16", "float32", "float64"),
    *("float8_e4m3fn", "float8_e5m2"),
)


class Bytes:
    """A byte string with a place in it."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        self.at += n
        assert self.at <= len(self.data)
        return self.data[self.at - n : self.at]

    def varint(self) -> int:
        groups = []
        while True:
            byte = self.take(1)[0]
            groups.append(byte % 128)
            if byte < 128:
                return sum(g * 128**i for i, g in enumerate(groups))

    def deflated(self, dictionary: bytes = b"") -> bytes:
        return zlib.decompressobj(-15, zdict=dictionary).decompress(
            self.take(self.varint())
        )


def unzigzag(z: int) -> int:
    return -(z + 1) // 2 if z % 2 else z // 2


def huffman_stream(source: Bytes, count: int) -> list[int]:
    """`count` symbols."""
    if count == 0:
        return []
    text = "".join(f"{byte:08b}" for byte in source.data[source.at :])
    at = 0

    def gamma() -> int:
        nonlocal at
        zeros = text.index("1", at) - at
        value = int(text[at + zeros : at + 2 * zeros + 1], 2)
        at += 2 * zeros + 1
        return value

    used, place = [], 0
    for _ in range(gamma()):
        place += gamma() - 1
        size = gamma()
        used += range(place, place + size)
        place += size
    if len(used) == 1:
        symbols = used * count
    else:
        lengths = [int(text[at : at + 5], 2)]
        at += 5
        for _ in used[1:]:
            lengths.append(lengths[-1] + unzigzag(gamma() - 1))
        table = [0] * place
        for symbol, length in zip(used, lengths, strict=True):
            table[symbol] = length
        back = {code: symbol for symbol, code in canonical(table).items()}
        assert sum(Fraction(1, 2**n) for n in lengths) == 1
        symbols, start = [], at
        while len(symbols) < count:
            at += 1
            if text[start:at] in back:
                symbols.append(back[text[start:at]])
                start = at
    size = -(-at // 8)
    assert set(text[at : 8 * size]) <= {"0"}
    source.at += size
    return symbols


def positions(source: Bytes) -> list[int]:
    """Where the non-zeros are."""
    limit = 2 ** source.take(1)[0]
    place, found = 0, []
    for symbol in huffman_stream(source, source.varint()):
        place += symbol
        if symbol < limit:
            found.append(place)
            place += 1
    return found


def unplaned(data: bytes, width: int) -> list[bytes]:
    """Byte planes back to elements."""
    n = len(data) // width
    return [bytes(data[i + n * b] for b in range(width)) for i in range(n)]


def values(source: Bytes, kind: int, n: int, width: int) -> list[bytes]:
    """`n` elements of `width` bytes each."""
    if kind == 0:
        return [source.take(width) for _ in range(n)]
    if kind == 1:
        return unplaned(source.deflated(), width)
    if kind == 2:
        return [source.take(width)] * n
    size, packed = divmod(source.varint(), 2)
    if packed:
        book, before = [], 0
        for step in unplaned(source.deflated(), width):
            before = (before + int.from_bytes(step, "little")) % 256**width
            book.append(before.to_bytes(width, "little"))
        assert len(book) == size
    else:
        book = [source.take(width) for _ in range(size)]
    return [book[i] for i in huffman_stream(source, n)]


def tensor(source: Bytes) -> np.ndarray:
    """One record."""
    rank, number = divmod(source.take(1)[0], 16)
    name = DTYPES[number]
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    shape = tuple(source.varint() for _ in range(rank))
    method = source.take(1)[0]
    sparse, kind = method >= 128, method % 128
    size = math.prod(shape)
    places = positions(source) if sparse else range(size)
    n, width = len(places), dtype.itemsize
    if kind == 4:
        scale = tensor(source)
        low = unzigzag(source.varint())
        codes = np.zeros(size)
        codes[list(places)] = [low + c for c in huffman_stream(source, n)]
        product = codes.reshape(shape) * scale.astype(np.float64)
        return (product.astype("f4") if width < 4 else product).astype(dtype)
    elements = [bytes(width)] * size
    for place, value in zip(places, values(source, kind, n, width), strict=True):
        elements[place] = value
    return np.frombuffer(b"".join(elements), dtype).reshape(shape)


def file(data: bytes, dictionary: bytes) -> tuple[dict, list[np.ndarray]]:
    """Header and arrays of a whole file."""
    assert data[:5] == bytes.fromhex("89444C4F01")
    assert hashlib.blake2b(data[:-8], digest_size=8).digest() == data[-8:]
    source, sections = Bytes(data[5:-8]), []
    for kind in (1, 2):
        assert source.take(1)[0] == kind
        sections.append(Bytes(source.take(source.varint())))
    assert source.at == len(source.data)
    head, body = sections
    size = head.varint()
    text = head.deflated(dictionary)
    assert len(text) == size
    arrays = [tensor(body) for _ in range(body.varint())]
    assert body.at == len(body.data)
    return json.loads(text), arrays
