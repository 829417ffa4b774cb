"""The search for the largest batch that fits, in few compilations. Pure Python."""

import math
from typing import Any

SAFE = 0.95  # of the memory; the rest is for the next batch and for fragmentation
CLOSE = 1.06  # stop when a batch that fits and one that does not are this near
COMPILATIONS = 6
LIMIT = 2**14  # examples on one device; more take minutes to compile and help nobody


def bytes_needed(found: dict[str, Any]) -> float:
    """Memory of a program on one device, also where it was refused as too big.

    Example:
        >>> bytes_needed({"arguments": 5, "results": 1, "temporary": 2, "code": 1})
        9.0
    """
    if "needed" in found:
        return float(found["needed"])
    parts = ("arguments", "results", "temporary", "code")
    return float(sum(found[part] for part in parts))


class Search:
    """Finds the largest batch whose program needs no more than `SAFE` of the memory.

    What a program needs is nearly linear in the batch, so two compilations predict the
    answer and a few more correct it.

    Args:
        devices: the batch is a multiple of it, and at most `LIMIT` times it.
        memory: bytes of one device.

    Example:
        >>> search = Search(devices=8, memory=100.0)
        >>> search.add(64, {"needed": 10 + 64})
        >>> while (batch := search.next()) is not None:
        ...     search.add(batch, {"needed": 10 + batch})
        >>> search.largest
        80
    """

    def __init__(self, *, devices: int, memory: float):
        self.devices, self.room = devices, SAFE * memory
        self.limit = LIMIT * devices
        self.tried: dict[int, float | None] = {}

    def add(self, batch: int, found: dict[str, Any]) -> None:
        """Takes the result of one compilation; one that failed counts as too big."""
        failed = not found.get("compiles", True)
        self.tried[batch] = None if failed else bytes_needed(found)

    @property
    def largest(self) -> int | None:
        """The largest batch tried that fits."""
        return max((b for b in self.tried if self._fits(b)), default=None)

    def next(self) -> int | None:
        """The batch to try next, None when done."""
        if len(self.tried) >= COMPILATIONS:
            return None
        known = {b: n for b, n in self.tried.items() if n is not None}
        if not known:
            return None
        fits = self.largest
        too_big = min((b for b in self.tried if not self._fits(b)), default=None)
        if fits and fits >= self.limit:
            return None
        if fits and too_big and too_big - fits <= max(self.devices, (CLOSE - 1) * fits):
            return None
        if len(known) == 1:
            (batch,) = known
            guess = batch // 2 if too_big else batch * 2
        else:
            guess = self._predicted(known)
        guess = self._aligned(guess, fits, too_big)
        return None if guess in self.tried else guess

    def _fits(self, batch: int) -> bool:
        needed = self.tried[batch]
        return needed is not None and needed <= self.room

    def _predicted(self, known: dict[int, float]) -> int:
        # The two batches nearest to the limit say most about its neighbourhood.
        near = sorted(known, key=lambda b: abs(known[b] - self.room))[:2]
        low, high = sorted(near)
        slope = (known[high] - known[low]) / (high - low)
        if slope <= 0:  # too small to matter yet
            return high * 8
        guess = low + (self.room - known[low]) / slope
        return int(min(guess, 64 * high))

    def _aligned(self, guess: int, fits: int | None, too_big: int | None) -> int:
        step = self.devices * (8 if guess >= 64 * self.devices else 1)
        guess = min(guess, self.limit) // step * step
        low = (fits or 0) + self.devices
        high = (too_big - self.devices) if too_big else self.limit
        if not low <= guess <= high:
            middle = (low + high) // 2 if too_big else low
            guess = math.ceil(middle / self.devices) * self.devices
        return max(self.devices, min(guess, self.limit))
