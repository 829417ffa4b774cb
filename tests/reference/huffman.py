"""Huffman coding one bit at a time: a heap, strings of "0" and "1", a dictionary."""

import heapq
import itertools


def total_bits(counts) -> int:
    """Sum of the weights of the inner nodes of a Huffman tree."""
    heap = [int(c) for c in counts if c]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def best_limited_bits(counts, limit: int) -> int:
    """Least total over all length assignments that satisfy Kraft's inequality."""
    totals = (
        sum(c * n for c, n in zip(counts, lengths, strict=True))
        for lengths in itertools.product(range(1, limit + 1), repeat=len(counts))
        if sum(2.0**-n for n in lengths) <= 1
    )
    return min(totals)


def canonical(lengths) -> dict[int, str]:
    """Symbol -> code as text."""
    code, before, codes = 0, 0, {}
    order = sorted((n, s) for s, n in enumerate(lengths) if n)
    for n, symbol in order:
        code <<= n - before
        codes[symbol] = format(code, f"0{n}b")
        code, before = code + 1, n
    return codes


def decode(text: str, codes: dict[int, str]) -> list[int]:
    """Follows the text bit by bit."""
    symbols, back, part = [], {c: s for s, c in codes.items()}, ""
    for bit in text:
        part += bit
        if part in back:
            symbols.append(back[part])
            part = ""
    assert not part
    return symbols
