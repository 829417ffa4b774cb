"""Integers of a matrix bit by bit, each with a probability learned from its context.

The same functions write and read, and run as they stand or compiled: on lists of
Python, or on arrays of int64. All is integers. Probabilities that a bit is 1 are kept
with 22 bits; each moves by 1 / (n + 1.5) of the way to the bit after its n-th use. For
the flag "is not zero" six of them, of column, row, neighbours and their magnitudes, are
mixed in the logistic domain with weights that are learned as well (Mahoney 2005,
"Adaptive weighing of context models for lossless data compression").
"""

from typing import Any

# 65536 / (1 + exp(-(i - 16) / 2)) to the nearest integer.
LOGISTIC = (
    *(22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955),
    *(17625, 24743, 32768, 40793, 47911, 53581, 57724, 60565, 62428, 63615),
    *(64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500, 65514),
)
# Of the contexts: from 0 rows, 4 columns, 6 signs, 15 magnitudes, 60 their lengths, 92
# what follows these; 124 neighbours, 188 their magnitudes, 236 column by row, 300 all,
# then each column, then the row.
CONTEXTS = 301
INPUTS, SETS = 6, 4
START = (29491, 29491, 22938, 16384, 19661, -52429)  # weights of 65536ths
MOST = 255  # uses after which a probability moves no more slowly
LOW, HIGH, PLACE, FULL = 0, 1, 3, 6  # of the state of the coder
MASK = 0xFFFFFFFF


def tables() -> tuple[list[int], list[int], list[int]]:
    """Logistic function, its inverse, and the steps of the probabilities."""
    squash = []
    for x in range(4096):
        i, w = x >> 7, x & 127
        squash.append((LOGISTIC[i] * (128 - w) + LOGISTIC[i + 1] * w + 64) >> 7)
    stretch, last = [2047] * 4096, 0
    for x in range(4096):
        p = squash[x] >> 4
        for k in range(last, p + 1):
            stretch[k] = x - 2048
        last = max(last, p + 1)
    return squash, stretch, [131072 // (2 * n + 3) for n in range(MOST + 1)]


def code_bit(c: Any, data: Any, p: int, bit: int) -> int:
    """Writes or reads a bit that is 1 with probability p / 65536."""
    span = c[1] - c[0]
    middle = c[0] + (span >> 16) * p + (((span & 65535) * p) >> 16)
    if c[4]:
        bit = 1 if c[2] <= middle else 0
    if bit:
        c[1] = middle
    else:
        c[0] = middle + 1
    while (c[0] ^ c[1]) >> 24 == 0:
        place = c[3]
        if c[4]:
            byte = data[place] if place < c[5] else 0
            c[2] = ((c[2] << 8) & 0xFFFFFFFF) | byte
        elif place < c[5]:
            data[place] = c[1] >> 24
        else:
            c[6] = 1
        c[3] = place + 1
        c[0] = (c[0] << 8) & 0xFFFFFFFF
        c[1] = ((c[1] << 8) & 0xFFFFFFFF) | 255
    return bit


def learn(states: Any, uses: Any, k: int, bit: int, steps: Any) -> None:
    """Moves a probability towards what happened."""
    n = uses[k]
    states[k] += (((bit << 22) - states[k]) * steps[n]) >> 16
    if n < 255:
        uses[k] = n + 1


def alone(
    c: Any, data: Any, states: Any, uses: Any, k: int, bit: int, steps: Any
) -> int:
    """A bit by the probability of one context."""
    p = min(max(states[k] >> 6, 32), 65504)
    bit = code_bit(c, data, p, bit)
    learn(states, uses, k, bit, steps)
    return bit


def nonzero(
    c: Any,
    data: Any,
    states: Any,
    uses: Any,
    picks: Any,
    inputs: Any,
    weights: Any,
    first: int,
    bit: int,
    squash: Any,
    stretch: Any,
    steps: Any,
) -> int:
    """The flag "is not zero": six contexts mixed."""
    total = 0
    for k in range(6):
        x = stretch[states[picks[k]] >> 10]
        inputs[k] = x
        total += weights[first + k] * x
    total = min(max(total >> 16, -2047), 2047)
    p = min(max(squash[total + 2048], 16), 65520)
    bit = code_bit(c, data, p, bit)
    error = (bit << 16) - p
    for k in range(6):
        weights[first + k] += (inputs[k] * error) >> 16
        learn(states, uses, picks[k], bit, steps)
    return bit


def magnitude(
    c: Any, data: Any, states: Any, uses: Any, near: int, size: int, steps: Any
) -> int:
    """A magnitude of 1 or more: counted out to 15, then in the manner of Elias."""
    level = 0 if near < 2 else 1 if near < 4 else 2
    found = 1
    while found < 15:
        more = 1 if size > found else 0
        if not alone(c, data, states, uses, 15 + 15 * level + found, more, steps):
            return found
        found += 1
    rest, length = size - 14, 0
    while length < 31:
        more = 1 if rest >> (length + 1) > 0 else 0
        if not alone(c, data, states, uses, 60 + length, more, steps):
            break
        length += 1
    value = 1
    for k in range(length - 1, -1, -1):
        one = (rest >> k) & 1
        if k == length - 1:
            one = alone(c, data, states, uses, 92 + length, one, steps)
        else:
            one = code_bit(c, data, 32768, one)
        value = 2 * value + one
    return value + 14


def flags(
    rows: int,
    columns: int,
    stride: int,
    alive: Any,
    used: Any,
    c: Any,
    data: Any,
    states: Any,
    uses: Any,
    steps: Any,
) -> None:
    """Which columns and rows hold anything but zeros; known when writing."""
    before = 0
    for j in range(columns):
        used[j] = alone(c, data, states, uses, 4 + before, used[j], steps)
        before = used[j]
    for i in range(rows):
        near = alive[i - 1] if i > 0 else 0
        if i >= stride:
            near += 2 * alive[i - stride]
        alive[i] = alone(c, data, states, uses, near, alive[i], steps)


def start_row(
    i: int, stride: int, alive: Any, density: Any, states: Any, uses: Any, row: int
) -> None:
    """The context of a row begins as the rows near it ended."""
    total, known = states[300], 1
    if i > 0 and alive[i - 1]:
        total += density[i - 1]
        known += 1
    if i >= stride and alive[i - stride]:
        total += density[i - stride]
        known += 1
    states[row] = total // known
    uses[row] = 10


def pick(
    v: Any,
    i: int,
    j: int,
    columns: int,
    stride: int,
    row: int,
    states: Any,
    uses: Any,
    picks: Any,
    near: Any,
    stretch: Any,
) -> None:
    """Chooses the six contexts; `near` gets what lies above, far above and left."""
    at = i * columns + j
    up = v[at - columns] if i > 0 else 0
    far = v[at - stride * columns] if i >= stride else 0
    left = v[at - 1] if j > 0 else 0
    near[0], near[1], near[2] = up, far, left
    twice = v[at - 2 * stride * columns] if i >= 2 * stride else 0
    second = v[at - 2] if j > 1 else 0
    right = v[at - columns + 1] if i > 0 and j + 1 < columns else 0
    column = 301 + j
    if uses[column] == 0:
        states[column] = states[300]
        uses[column] = 8
    by_column = min(max((stretch[states[column] >> 10] + 1792) >> 8, 0), 7)
    by_row = min(max((stretch[states[row] >> 10] + 1792) >> 8, 0), 7)
    some = (up != 0) + 2 * (far != 0) + 4 * (left != 0) + 8 * (second != 0)
    picks[0], picks[1], picks[5] = column, row, 300
    picks[2] = 124 + some + 16 * (right != 0) + 32 * (twice != 0)
    picks[3] = 188 + min(abs(up), 3) + 4 * min(abs(far), 3) + 16 * min(abs(left), 2)
    picks[4] = 236 + 8 * by_column + by_row
    for k in range(2, 5):
        if uses[picks[k]] == 0:
            states[picks[k]] = states[300]
            uses[picks[k]] = 1


def signed(
    c: Any, data: Any, states: Any, uses: Any, near: Any, value: int, steps: Any
) -> int:
    """An integer that is not zero: its sign, then its magnitude."""
    up, far = near[0], near[1]
    side = 10 + (up > 0) - (up < 0) + 3 * (far > 0) - 3 * (far < 0)
    negative = 1 if value < 0 else 0
    negative = alone(c, data, states, uses, side, negative, steps)
    largest = max(abs(up), abs(far), abs(near[2]))
    size = magnitude(c, data, states, uses, largest, abs(value), steps)
    return -size if negative else size


def walk(
    v: Any,
    rows: int,
    columns: int,
    stride: int,
    alive: Any,
    used: Any,
    density: Any,
    c: Any,
    data: Any,
    states: Any,
    uses: Any,
    weights: Any,
    picks: Any,
    inputs: Any,
    near: Any,
    squash: Any,
    stretch: Any,
    steps: Any,
) -> None:
    """Writes the integers of `v`, or fills it; see docs/format.md."""
    flags(rows, columns, stride, alive, used, c, data, states, uses, steps)
    row, kit = 301 + columns, (squash, stretch, steps)
    for i in range(rows):
        if not alive[i]:
            continue
        start_row(i, stride, alive, density, states, uses, row)
        for j in range(columns):
            if not used[j]:
                continue
            at = i * columns + j
            pick(v, i, j, columns, stride, row, states, uses, picks, near, stretch)
            first = 6 * ((near[0] != 0) + (near[1] != 0) + (near[2] != 0))
            flag = 1 if v[at] != 0 else 0
            flag = nonzero(
                c, data, states, uses, picks, inputs, weights, first, flag, *kit
            )
            if flag:
                v[at] = signed(c, data, states, uses, near, v[at], steps)
            if c[6]:
                return
        density[i] = states[row]
