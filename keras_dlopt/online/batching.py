"""MixedBatches of new samples and of what the memory holds."""

from typing import Any

import keras
import numpy as np

from keras_dlopt.online.held import Held
from keras_dlopt.online.memory import Memory
from keras_dlopt.online.replay import Replay
from keras_dlopt.online.steps import MixedBatches


class Batcher:
    """Fills batches of one shape up from a memory.

    Args:
        memory: which items are drawn; None for no replay.
        replay: how many, and what they weigh.
        batch_size: rows of new samples in a batch.
        kept: shape of the logits that are kept of a row.
        rng: of the draws.
    """

    def __init__(
        self,
        memory: Memory | None,
        replay: Replay,
        *,
        batch_size: int,
        kept: tuple[int, ...],
        rng: np.random.Generator,
    ):
        self.memory, self.replay, self.rng = memory, replay, rng
        self.held = Held(1) if memory is None else memory.start()
        self.kept = kept
        self.rows = batch_size + (0 if memory is None else replay.rows)

    def row(self, x: Any, y: Any, kept: Any, i: int) -> list[Any]:
        """One sample as the memory holds it."""
        return [*(a[i] for a in keras.tree.flatten((x, y))), kept[i]]

    def mixed(self, x: Any, y: Any) -> MixedBatches:
        """New samples, which come first, with others in each of the steps."""
        n = len(keras.tree.flatten(y)[0])
        new = [*keras.tree.flatten((x, y)), np.zeros((n, *self.kept), "float32")]
        steps = [self._filled(new, n) for _ in range(self.replay.steps)]
        return self._batches((x, y), steps, n)

    def remembered(self, x: Any, y: Any, *, kept: bool) -> MixedBatches:
        """Samples of the memory alone; `x` and `y` give the structure.

        Args:
            x: inputs of any samples.
            y: labels of any samples.
            kept: whether the logits count that were kept of them.
        """
        assert self.memory is not None
        steps = []
        for _ in range(self.replay.steps):
            places = self.memory.draw(self.held, self.rows, self.rng)
            steps.append((self.held.rows(places), np.full(self.rows, float(kept))))
        return self._batches((x, y), steps, self.rows)

    def _filled(self, new: list[np.ndarray], n: int) -> tuple[list[np.ndarray], Any]:
        missing = self.rows - n
        if not missing:
            return new, np.zeros(n)
        if self.memory is not None and self.held.count:
            more = self.held.rows(self.memory.draw(self.held, missing, self.rng))
        else:  # nothing is held yet: the new rows stand for themselves
            places = self.rng.integers(n, size=missing)
            more = [column[places] for column in new]
        from_memory = float(bool(self.held.count))
        joined = [np.concatenate(pair) for pair in zip(new, more, strict=True)]
        return joined, np.r_[np.zeros(n), np.full(missing, from_memory)]

    def _batches(self, structure: Any, steps: list[Any], n: int) -> MixedBatches:
        columns = [
            np.stack(column) for column in zip(*(s for s, _ in steps), strict=True)
        ]
        memory = np.stack([flags for _, flags in steps]).astype("float32")
        x, y = keras.tree.pack_sequence_as(structure, columns[:-1])
        return MixedBatches(x, y, columns[-1], memory, self._weights(memory, n))

    def _weights(self, memory: np.ndarray, n: int) -> np.ndarray | None:
        """Means over new and over kept rows, as weights in the mean over both."""
        weight = self.replay.weight
        if weight is None:
            return None
        new = np.where(np.arange(self.rows) < n, 1.0, 0.0)
        if n == self.rows or not memory.any():
            return np.ones_like(memory)
        old = weight * (1.0 - new) / (self.rows - n)
        return np.broadcast_to(self.rows * (new / n + old), memory.shape).astype(
            "float32"
        )
