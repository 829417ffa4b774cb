"""Integers by their neighbours, decoded as docs/format.md says and no faster."""

from fractions import Fraction

LOGISTIC = [
    round(65536 / (1 + Fraction(float(2.718281828459045 ** ((16 - i) / 2)))))
    for i in range(33)
]


def squash(x: int) -> int:
    i, w = divmod(x + 2048, 128)
    return (LOGISTIC[i] * (128 - w) + LOGISTIC[i + 1] * w + 64) // 128


STRETCH = []
for _x in range(-2048, 2048):
    while len(STRETCH) <= squash(_x) // 16:
        STRETCH.append(_x)
STRETCH += [2047] * (4096 - len(STRETCH))


class Context:
    """The probability that a bit is 1, of 2**22."""

    def __init__(self, p: int = 2**21, uses: int = 0):
        self.p, self.uses = p, uses

    def learn(self, bit: int) -> None:
        self.p += (bit * 2**22 - self.p) * (131072 // (2 * self.uses + 3)) // 65536
        self.uses = min(self.uses + 1, 255)


class Decoder:
    """Binary arithmetic decoder."""

    def __init__(self, data: bytes):
        self.data, self.low, self.high, self.at = data, 0, 2**32 - 1, 0
        self.code = 0
        for _ in range(4):
            self.code = self.code * 256 + self.byte()

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def bit(self, p: int) -> int:
        span = self.high - self.low
        middle = self.low + span // 65536 * p + span % 65536 * p // 65536
        bit = int(self.code <= middle)
        if bit:
            self.high = middle
        else:
            self.low = middle + 1
        while self.low // 2**24 == self.high // 2**24:
            self.low = self.low * 256 % 2**32
            self.high = self.high * 256 % 2**32 + 255
            self.code = self.code * 256 % 2**32 + self.byte()
        return bit

    def alone(self, context: Context) -> int:
        bit = self.bit(min(max(context.p // 64, 32), 65504))
        context.learn(bit)
        return bit


def integers(source, count: int, columns: int) -> list[int]:
    """`count` integers of a matrix with so many columns."""
    stride, rows = source.varint(), count // columns
    decoder = Decoder(source.take(source.varint()))
    table: dict[tuple, Context] = {}

    def context(*key) -> Context:
        return table.setdefault(key, Context())

    used, alive = [], []
    for j in range(columns):
        used.append(decoder.alone(context("column", used[-1] if j else 0)))
    for i in range(rows):
        near = alive[i - 1] if i else 0
        far = alive[i - stride] if i >= stride else 0
        alive.append(decoder.alone(context("row", near, far)))
    m = [[0] * columns for _ in range(rows)]
    weights = [[29491, 29491, 22938, 16384, 19661, -52429] for _ in range(4)]
    of_all, of_column, last = Context(), {}, {}

    def at(i, j) -> int:
        return m[i][j] if i >= 0 and 0 <= j < columns else 0

    for i in range(rows):
        if not alive[i]:
            continue
        known = [of_all.p] + [last[k] for k in (i - 1, i - stride) if last.get(k)]
        of_row = Context(sum(known) // len(known), 10)
        for j in range(columns):
            if not used[j]:
                continue
            up, far, left = at(i - 1, j), at(i - stride, j), at(i, j - 1)
            others = at(i, j - 2), at(i - 1, j + 1), at(i - 2 * stride, j)
            column = of_column.setdefault(j, Context(of_all.p, 8))
            near = tuple(v != 0 for v in (up, far, left, *others))
            large = min(abs(up), 3), min(abs(far), 3), min(abs(left), 2)
            cell = tuple(
                min(max((STRETCH[c.p // 1024] + 1792) // 256, 0), 7)
                for c in (column, of_row)
            )
            some = [column, of_row]
            for key in (("near", near), ("large", large), ("cell", cell)):
                if key not in table:
                    table[key] = Context(of_all.p, 1)
                some.append(table[key])
            some.append(of_all)
            w = weights[sum(near[:3])]
            x = [STRETCH[c.p // 1024] for c in some]
            total = sum(a * b for a, b in zip(w, x, strict=True)) // 65536
            p = min(max(squash(min(max(total, -2047), 2047)), 16), 65520)
            bit = decoder.bit(p)
            for k, c in enumerate(some):
                w[k] += x[k] * (bit * 65536 - p) // 65536
                c.learn(bit)
            if bit:
                signs = tuple((v > 0) - (v < 0) for v in (up, far))
                negative = decoder.alone(context("sign", signs))
                level = max(abs(up), abs(far), abs(left))
                level = 0 if level < 2 else 1 if level < 4 else 2
                size = 1
                while size < 15 and decoder.alone(context("size", level, size)):
                    size += 1
                if size == 15:
                    size = 14 + elias(decoder, context)
                m[i][j] = -size if negative else size
        last[i] = of_row.p
    return [v for row in m for v in row]


def elias(decoder, context) -> int:
    """1 or more: length, first bit, and the rest."""
    length = 0
    while length < 31 and decoder.alone(context("length", length)):
        length += 1
    value = 1
    for k in range(length):
        bit = decoder.bit(32768) if k else decoder.alone(context("first", length))
        value = 2 * value + bit
    return value
