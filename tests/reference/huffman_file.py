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

from reference import random_code, short_header
from reference.context_file import integers
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


class Bits:
    """A bit string, from the most significant bit of each byte on."""

    def __init__(self, source: Bytes):
        self.source, self.used = source, 0

    def read(self, width: int) -> int:
        value = 0
        for _ in range(width):
            byte = self.source.data[self.source.at + self.used // 8]
            value = 2 * value + (byte >> (7 - self.used % 8)) % 2
            self.used += 1
        return value

    def gamma(self) -> int:
        zeros = 0
        while self.read(1) == 0:
            zeros += 1
        return 2**zeros + self.read(zeros)

    def finish(self) -> None:
        while self.used % 8:
            assert self.read(1) == 0
        self.source.at += self.used // 8


def rans_stream(source: Bytes, count: int) -> list[int]:
    """`count` symbols."""
    if count == 0:
        return []
    bits = Bits(source)
    precision, used, place = bits.read(4), [], 0
    for _ in range(bits.gamma()):
        place += bits.gamma() - 1
        size = bits.gamma()
        used += range(place, place + size)
        place += size
    if precision == 0:
        bits.finish()
        (symbol,) = used
        return [symbol] * count
    lanes, mantissa, length = 2 ** bits.read(4), bits.read(4), [bits.read(4)]
    for _ in used[1:]:
        length.append(length[-1] + unzigzag(bits.gamma() - 1))
    rest = length.index(max(length))
    frequency = []
    for i, n in enumerate(length):
        kept = 0 if i == rest else min(n - 1, mantissa)
        frequency.append((2**kept + bits.read(kept)) * 2 ** (n - 1 - kept))
    frequency[rest] = 2**precision - sum(frequency) + frequency[rest]
    bits.finish()
    states = [int.from_bytes(source.take(4), "little") for _ in range(lanes)]
    words = source.varint()
    words = [int.from_bytes(source.take(2), "little") for _ in range(words)]
    slots = [(i, j) for i, n in enumerate(frequency) for j in range(n)]
    assert len(slots) == 2**precision
    found = []
    for k in range(count):
        x = states[k % lanes]
        i, j = slots[x % 2**precision]
        x = frequency[i] * (x // 2**precision) + j
        states[k % lanes] = x if x >= 2**16 else x * 2**16 + words.pop(0)
        found.append(used[i])
    assert not words
    assert set(states) == {2**16}
    return found


STREAMS = [huffman_stream, rans_stream]


def positions(source: Bytes) -> list[int]:
    """Where the non-zeros are."""
    coder, log_limit = divmod(source.take(1)[0], 16)
    limit = 2**log_limit
    place, found = 0, []
    for symbol in STREAMS[coder](source, source.varint()):
        place += symbol
        if symbol < limit:
            found.append(place)
            place += 1
    return found


def unplaned(data: bytes, width: int) -> list[bytes]:
    """Byte planes back to elements."""
    n = len(data) // width
    return [bytes(data[i + n * b] for b in range(width)) for i in range(n)]


def bytes_of(source: Bytes, n: int, width: int, turned: bool) -> list[bytes]:
    """`n` elements, written as planes of their bytes from the top one down."""
    planes = []
    for _ in range(width):
        method = source.take(1)[0]
        if method == 0:
            planes.append(source.take(n))
        elif method == 1:
            planes.append(source.take(1) * n)
        else:
            planes.append(bytes(STREAMS[method - 2](source, n)))
    found = []
    for digits in zip(*planes, strict=True):
        value = int.from_bytes(bytes(digits), "big")
        if turned:
            value = value // 2 + value % 2 * 2 ** (8 * width - 1)
        found.append(value.to_bytes(width, "little"))
    return found


def codebook(source: Bytes, width: int) -> list[bytes]:
    """Its values."""
    size, packed = divmod(source.varint(), 2)
    if packed:
        book, before = [], 0
        for step in unplaned(source.deflated(), width):
            before = (before + int.from_bytes(step, "little")) % 256**width
            book.append(before.to_bytes(width, "little"))
        assert len(book) == size
    else:
        book = [source.take(width) for _ in range(size)]
    return book


def values(source: Bytes, kind: int, n: int, width: int) -> list[bytes]:
    """`n` elements of `width` bytes each."""
    if kind == 0:
        return [source.take(width) for _ in range(n)]
    if kind == 1:
        return unplaned(source.deflated(), width)
    if kind == 2:
        return [source.take(width)] * n
    book = codebook(source, width)
    return [book[i] for i in STREAMS[(kind - 3) // 2](source, n)]


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
    if kind in (4, 6):
        scale = tensor(source)
        low = unzigzag(source.varint())
        codes = np.zeros(size)
        codes[list(places)] = [low + c for c in STREAMS[kind // 2 - 2](source, n)]
        product = codes.reshape(shape) * scale.astype(np.float64)
        return (product.astype("f4") if width < 4 else product).astype(dtype)
    if kind == 65:
        book = codebook(source, width)
        zero = book.index(bytes(width))
        found = [book[zero + i] for i in integers(source, size, shape[-1])]
        return np.frombuffer(b"".join(found), dtype).reshape(shape)
    if kind in (66, 67):
        scale = tensor(source)
        if kind == 66:
            codes = np.array(integers(source, size, shape[-1]), np.float64)
        else:
            codes = np.array(random_code.codes(source, size), np.float64)
        product = codes.reshape(shape) * scale.astype(np.float64)
        return (product.astype("f4") if width < 4 else product).astype(dtype)
    elements = [bytes(width)] * size
    if kind == 64:
        turned = "float" in name and width > 1
        found = bytes_of(source, n, width, turned)
    else:
        found = values(source, kind, n, width)
    for place, value in zip(places, found, strict=True):
        elements[place] = value
    return np.frombuffer(b"".join(elements), dtype).reshape(shape)


def file(
    data: bytes,
    dictionary: bytes,
    short_dictionary: bytes = b"",
    base: list[np.ndarray] | None = None,
) -> tuple[dict, list[np.ndarray]]:
    """Header and arrays of a whole file, or of one that is the difference to a base."""
    assert data[:4] == bytes.fromhex("89444C4F")
    assert 1 <= data[4] <= 6
    assert hashlib.blake2b(data[:-8], digest_size=8).digest() == data[-8:]
    source, sections = Bytes(data[5:-8]), []
    short = False
    for kinds in ((1, 4) if data[4] >= 4 else (1,), (2, 3) if data[4] > 2 else (2,)):
        kind = source.take(1)[0]
        assert kind in kinds
        short |= kind == 4
        sections.append(Bytes(source.take(source.varint())))
    assert source.at == len(source.data)
    head, body = sections
    size = head.varint()
    text = head.deflated(short_dictionary if short else dictionary)
    assert len(text) == size
    count = body.varint()
    if kind == 3:
        sizes = [body.varint() for _ in range(count)]
        arrays = [tensor(Bytes(body.take(size))) for size in sizes]
    else:
        arrays = [tensor(body) for _ in range(count)]
    assert body.at == len(body.data)
    header = json.loads(text)
    if short:
        header = short_header.header(header, dictionary)
    for place, of, turned in sorted(header.get("same", [])):
        arrays.insert(place, arrays[of].T.copy() if turned else arrays[of])
    if "base" in header:
        assert data[4] == 5
        digest = hashlib.blake2b(digest_size=16)
        for _, of, _ in header["from"]:
            array = base[of]
            digest.update(f"{array.dtype.name}{list(array.shape)}".encode())
            digest.update(array.tobytes())
        assert digest.hexdigest() == header["base"]
        for place, of, how in sorted(header["from"]):
            if how == 0:
                arrays.insert(place, base[of])
            else:
                arrays[place] = beside(base[of], arrays[place], how)
    return header, arrays


def beside(base: np.ndarray, apart: np.ndarray, how: int) -> np.ndarray:
    """The array that differs so from that of the base, element by element."""
    width, out = base.dtype.itemsize, b""
    assert apart.dtype == np.dtype(f"u{width}")
    assert apart.shape == base.shape
    before = base.tobytes()
    for i, step in enumerate(apart.reshape(-1).tolist()):
        bits = int.from_bytes(before[i * width : (i + 1) * width], "little")
        bits = bits ^ step if how == 1 else (bits + unzigzag(step)) % 2 ** (8 * width)
        out += bits.to_bytes(width, "little")
    return np.frombuffer(out, base.dtype).reshape(base.shape)
