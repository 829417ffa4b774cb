"""What a memory holds: one row an item, and when each came."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np


class Held:
    """The items of a memory, in arrays that are allocated once.

    Args:
        size: most items that it holds.

    Attributes:
        count: items held now.
        columns: arrays with the rows of all items, (size, ...); empty before the first.
        arrived: number in the stream of each item.
        labels: class of each item; -1 where there are no classes.
        seen: how many items of each class came since the memory was empty, or was told
            to forget.
        full: classes that were the largest one while the memory was full.
    """

    def __init__(self, size: int):
        self.size = size
        self.count = 0
        self.columns: list[np.ndarray] = []
        self.arrived = np.zeros(size, "int64")
        self.labels = np.full(size, -1, "int64")
        self.seen: Counter[int] = Counter()
        self.full: set[int] = set()

    def put(self, place: int, row: Sequence[Any], *, arrived: int, label: int) -> None:
        """Writes an item to a place, the first free one or one that is taken."""
        if not self.columns:
            arrays = [np.asarray(part) for part in row]
            self.columns = [np.zeros((self.size, *a.shape), a.dtype) for a in arrays]
        for column, part in zip(self.columns, row, strict=True):
            column[place] = part
        self.arrived[place], self.labels[place] = arrived, label
        self.count = max(self.count, place + 1)

    def rows(self, places: np.ndarray) -> list[np.ndarray]:
        """The items at these places, one array for each column."""
        return [column[places] for column in self.columns]

    def classes(self) -> tuple[np.ndarray, np.ndarray]:
        """The classes of the items held, in order, and how many items each has."""
        return np.unique(self.labels[: self.count], return_counts=True)

    def forget(self, before: int) -> int:
        """Drops what came before a number of the stream; returns how many went."""
        stays = np.flatnonzero(self.arrived[: self.count] >= before)
        gone = self.count - len(stays)
        if gone:
            for column in (*self.columns, self.arrived, self.labels):
                column[: len(stays)] = column[stays]
            self.count = len(stays)
        # What comes now competes with what is held, not with what was forgotten.
        names, counts = self.classes()
        self.seen = Counter(dict(zip(names.tolist(), counts.tolist(), strict=True)))
        self.full = set()
        return gone

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Numbers and arrays from which `restore` makes the same again."""
        numbers = {
            "count": self.count,
            "seen": [[k, v] for k, v in sorted(self.seen.items())],
            "full": sorted(self.full),
        }
        arrays = {f"column_{i}": c[: self.count] for i, c in enumerate(self.columns)}
        arrays |= {
            "arrived": self.arrived[: self.count],
            "labels": self.labels[: self.count],
        }
        return numbers, arrays

    def restore(self, numbers: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Takes on what `state` gave."""
        self.count = int(numbers["count"])
        self.seen = Counter({int(k): int(v) for k, v in numbers["seen"]})
        self.full = {int(k) for k in numbers["full"]}
        self.columns = []
        while (found := arrays.get(f"column_{len(self.columns)}")) is not None:
            column = np.zeros((self.size, *found.shape[1:]), found.dtype)
            column[: self.count] = found
            self.columns.append(column)
        self.arrived[: self.count] = arrays["arrived"]
        self.labels[: self.count] = arrays["labels"]
