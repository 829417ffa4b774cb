"""Which samples of a stream are kept, and which are learned again."""

from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.config import Value, frozen
from keras_dlopt.online.held import Held


class Memory(Value):
    """Which samples of a stream stay for replay.

    A subclass says where a new item goes and which items are drawn; both only read what
    is held, and take their chances from the generator that they are given.
    """

    size: int
    #: Whether it asks for the class of a sample.
    by_class = False

    def start(self) -> Held:
        """A memory of this kind, empty."""
        return Held(self.size)

    def add(
        self,
        held: Held,
        row: Any,
        *,
        arrived: int,
        label: int,
        rng: np.random.Generator,
    ) -> None:
        """Takes a sample of the stream in, or passes it over."""
        held.seen[label] += 1
        place = self.place(held, label, rng)
        if place is not None:
            held.put(place, row, arrived=arrived, label=label)

    def place(self, held: Held, label: int, rng: np.random.Generator) -> int | None:
        """Where an item goes that is counted in `held.seen` already; None: nowhere."""
        raise TypeError(f"{type(self).__name__} must define place().")

    def draw(self, held: Held, number: int, rng: np.random.Generator) -> np.ndarray:
        """Places of `number` items, none twice unless fewer are held."""
        if number <= held.count:
            return rng.choice(held.count, number, replace=False)
        return rng.integers(held.count, size=number)


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class Reservoir(Memory):
    """A uniform sample of all that came so far.

    The n-th item takes a free place or, where none is left, that of a random one with
    the probability `size / n`: each of the n items is held with that probability.

    Args:
        size: most items that are held.

    Raises:
        ConfigError: for a size below 1.

    Example:
        >>> Reservoir(200)
        Reservoir(size=200)

    Source: Vitter, "Random Sampling with a Reservoir" (ACM TOMS 11, 1985), algorithm R.
    """

    size: int = 500

    def __post_init__(self):
        self.keep(size=checks.count(self.size, name="size"))

    def place(self, held, label, rng):
        if held.count < self.size:
            return held.count
        place = int(rng.integers(held.seen.total()))
        return place if place < self.size else None


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class ClassBalanced(Memory):
    """As many items of each class as the stream lets have, each class a reservoir.

    While there is room all is taken. Then an item of a class that was never the
    largest one replaces a random item of the largest class; one of another class
    replaces a random item of its own with the probability `held / seen` of that class.
    Replay draws each class with the same probability.

    Args:
        size: most items that are held.

    Raises:
        ConfigError: for a size below 1.

    Example:
        >>> ClassBalanced(200)
        ClassBalanced(size=200)

    Source: Chrysakis and Moens, "Online Continual Learning from Imbalanced Data" (ICML
    2020), algorithm 1.
    """

    size: int = 500
    by_class = True

    def __post_init__(self):
        self.keep(size=checks.count(self.size, name="size"))

    def place(self, held, label, rng):
        if held.count < self.size:
            return held.count
        names, counts = held.classes()
        most = counts.max()
        held.full |= set(names[counts == most].tolist())
        if label not in held.full:
            return _any_of(held, int(names[np.argmax(counts)]), rng)
        mine = int(counts[names == label].sum())
        if mine and rng.random() <= mine / held.seen[label]:
            return _any_of(held, label, rng)
        return None

    def draw(self, held, number, rng):
        names, counts = held.classes()
        order = np.argsort(held.labels[: held.count], kind="stable")
        starts = np.cumsum(counts) - counts
        # Classes in turns, from a random one on: their numbers differ by 1 at most.
        turn = (rng.permutation(len(names))[None] + np.zeros((number, 1), int)).ravel()
        chosen = turn[:number]
        inside = (rng.random(number) * counts[chosen]).astype("int64")
        return order[starts[chosen] + inside]


def _any_of(held: Held, label: int, rng: np.random.Generator) -> int:
    places = np.flatnonzero(held.labels[: held.count] == label)
    return int(places[rng.integers(len(places))])
