"""Candidates of a random code, one at a time, as docs/format.md says and no faster."""

import math

MASK = 2**64 - 1
LIMITS = [
    round(32768 * math.erf((j - 0.5) / (60 * math.sqrt(2)))) for j in range(1, 253)
]


def deviate(u: int) -> int:
    """The candidate that a number of 16 bits stands for."""
    size = sum(limit <= u % 32768 for limit in LIMITS)
    return -size if u >= 32768 else size


def candidate(number: int, place: int) -> int:
    x = (number * 2**44 + place // 4 + 1) * 0x9E3779B97F4A7C15 & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    x ^= x >> 31
    return deviate(x >> 16 * (place % 4) & 0xFFFF)


def element(place: int, count: int) -> int:
    """The element at a place."""
    step = max(1, count * 618034 // 1000000)
    while math.gcd(step, count) > 1:
        step += 1
    return place * step % count


def codes(source, count: int) -> list[int]:
    """The codes of an array, from a `huffman_file.Bytes`."""
    bits, length = source.take(1)[0], source.varint()
    blocks = -(-count // length)
    data = source.take(-(-blocks * bits // 8))
    text = "".join(f"{byte:08b}" for byte in data)
    found = [0] * count
    for place in range(count):
        at = place // length * bits
        number = int(text[at : at + bits], 2)
        found[element(place, count)] = candidate(number, place)
    return found
