"""What is known of the channels of one tensor, and which must leave together."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """One entry a channel of a tensor.

    Attributes:
        axis: of the tensor, batch counted, along which the channels lie.
        ids: what each channel is; equal ids are the same channel seen twice.
        low: the least value that the channel can take, for any input and anywhere.
        high: the greatest.
    """

    axis: int
    ids: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __post_init__(self):
        for name in ("low", "high"):
            wide = np.broadcast_to(np.asarray(getattr(self, name), "float64"), self.n)
            object.__setattr__(self, name, wide)

    @property
    def n(self) -> int:
        """How many channels."""
        return len(self.ids)

    def moved(self, axis: int) -> "Channels":
        """The same channels along another axis."""
        return dataclasses.replace(self, axis=axis)

    def taken(self, index: np.ndarray) -> "Channels":
        """Some of the channels, in this order."""
        parts = self.ids[index], self.low[index], self.high[index]
        return Channels(self.axis, *parts)

    def bounded(self, low: np.ndarray, high: np.ndarray) -> "Channels":
        """The same channels with other values."""
        return Channels(self.axis, self.ids, low, high)

    def fixed(self, negligible: float) -> np.ndarray:
        """Whether the channel has one value, whatever the input, everywhere."""
        return self.high - self.low <= negligible

    def zero(self, negligible: float) -> np.ndarray:
        """Whether that value is 0."""
        return (self.high <= negligible) & (self.low >= -negligible)


class Classes:
    """Ids that were made one after the other, joined where they stand or fall together.

    Union-find with path halving (Tarjan and van Leeuwen, 1984).
    """

    def __init__(self):
        self._parents: list[int] = []

    def fresh(self, count: int) -> np.ndarray:
        """New ids, each a class of its own."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Joins the classes of two lists of ids, position by position."""
        if one is other:
            return
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            self._parents[self._root(a)] = self._root(b)

    def labels(self) -> np.ndarray:
        """Id -> number of its class, counted from 0 in the order of the first ids."""
        roots = [self._root(i) for i in range(len(self._parents))]
        numbers: dict[int, int] = {}
        for root in roots:
            numbers.setdefault(root, len(numbers))
        return np.array([numbers[root] for root in roots], int)

    def _root(self, i: int) -> int:
        parents = self._parents
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i
