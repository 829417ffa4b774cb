"""Batches drawn as the accountant counts them, each a function of a secret and a step.

A batch has always a mask, 1 for an example that was drawn and 0 for a row that only
fills the batch up. Those rows repeat drawn examples, so that metrics of the batch are
those of drawn examples, and have no part in the gradient.
"""

import dataclasses
import secrets
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.config import Value, frozen
from keras_dlopt.errors import DataError

# A batch is larger than what is kept free for it with this probability, and is then
# drawn anew; deltas are larger by many orders.
_OVERFLOW = 1e-15


@dataclasses.dataclass(frozen=True)
class Secret:
    """What draws and noise come from: 128 bits that nobody else knows.

    Attributes:
        words: four whole numbers below 2**32.
    """

    words: tuple[int, ...] = dataclasses.field(repr=False)

    @classmethod
    def of(cls, seed: int | None) -> "Secret":
        """A fresh one from the system, or one that follows from a seed, for tests."""
        if seed is None:
            return cls(tuple(secrets.randbits(32) for _ in range(4)))
        state = np.random.SeedSequence(seed).generate_state(4)
        return cls(tuple(int(word) for word in state))

    def rng(self, purpose: int, step: int) -> np.random.Generator:
        """The generator of one purpose in one step."""
        return np.random.default_rng([*self.words, purpose, step])


@frozen(kw_only=True)
class Draw(Value):
    """How batches are drawn from examples.

    Attributes:
        examples: how many there are.
        batch_size: examples a batch, in the mean.
        sampling: `"poisson"` or `"shuffled"`.
        padded: whether all batches have one size, which XLA and replicas need.
        multiple: what the size is a multiple of.
    """

    examples: int
    batch_size: int
    sampling: str = "poisson"
    padded: bool = False
    multiple: int = 1

    @property
    def rate(self) -> float:
        """Share of the examples that a batch has, in the mean."""
        return self.batch_size / self.examples

    @property
    def batches(self) -> int:
        """Batches in which each example is once, in the mean."""
        return -(-self.examples // self.batch_size)

    @property
    def capacity(self) -> int:
        """The rows of a padded batch."""
        largest = self.batch_size
        if self.sampling == "poisson":
            from scipy import stats

            largest = int(stats.binom.isf(_OVERFLOW, self.examples, self.rate))
        return _up(min(largest, self.examples), self.multiple)

    def at(
        self, secret: Secret, step: int, *, origin: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows of one step's batch, and its mask.

        Args:
            secret: what they follow from.
            step: number of the step, counted over all of training.
            origin: the step that the first pass begins with.
        """
        if self.sampling == "poisson":
            rng, chosen = secret.rng(0, step), None
            while chosen is None or len(chosen) > self.capacity:
                chosen = np.nonzero(rng.random(self.examples) < self.rate)[0]
        else:
            number, place = divmod(step - origin, self.batches)
            order = secret.rng(1, origin + number).permutation(self.examples)
            chosen = order[place * self.batch_size :][: self.batch_size]
        drawn = len(chosen)
        size = self.capacity if self.padded else _up(max(drawn, 1), self.multiple)
        rows = np.resize(chosen if drawn else np.zeros(1, "int64"), size)
        return rows, (np.arange(size) < drawn).astype("float32")


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class DrawnData:
    """A `tf.data.Dataset` of drawn batches, made anew for each pass.

    Args:
        x: arrays of examples, in any structure.
        y: labels, in any structure.
        draw: how batches are drawn.
        secret: what they follow from.
        steps: batches of one pass over the data set.
    """

    def __init__(self, x: Any, y: Any, draw: Draw, secret: Secret, *, steps: int):
        self.arrays, self.draw, self.secret = (x, y), draw, secret
        self.steps = steps
        #: The step that the next pass begins with, and the first of this training.
        self.position = self.origin = 0

    def _rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        start = self.position
        for step in range(start, start + self.steps):
            yield self.draw.at(self.secret, step, origin=self.origin)

    def dataset(self) -> Any:
        """The data set of `(x, y, mask)`."""
        import tensorflow as tf

        size = self.draw.capacity if self.draw.padded else None
        data = tf.data.Dataset.from_generator(
            self._rows,
            output_signature=(
                tf.TensorSpec((size,), "int64"),
                tf.TensorSpec((size,), "float32"),
            ),
        )
        data = data.apply(tf.data.experimental.assert_cardinality(self.steps))
        x, y = keras.tree.map_structure(tf.constant, self.arrays)

        def batch(rows: Any, mask: Any) -> Any:
            def take(one: Any) -> Any:
                return tf.gather(one, rows)

            return (
                keras.tree.map_structure(take, x),
                keras.tree.map_structure(take, y),
                mask,
            )

        options = tf.data.Options()
        options.autotune.enabled = False
        return data.map(batch).prefetch(1).with_options(options)


def arrays(x: Any, y: Any) -> tuple[Any, Any, int]:
    """Examples and labels as arrays, and how many there are.

    Raises:
        DataError: for anything but arrays of as many examples as labels.
    """
    for name, given in (("x", x), ("y", y)):
        if given is None or hasattr(given, "__next__") or hasattr(given, "take_while"):
            raise _no_arrays(name, given)
    x, y = keras.tree.map_structure(_array, (x, y))
    leaves = keras.tree.flatten((x, y))
    counts = {len(one) if one.ndim else 0 for one in leaves}
    if len(counts) != 1 or 0 in counts:
        raise DataError(
            "x and y must have as many examples as labels, and some. Received: the "
            f"shapes {[one.shape for one in leaves]}."
        )
    return x, y, counts.pop()


def _array(given: Any) -> np.ndarray:
    if isinstance(given, keras.utils.PyDataset):
        raise _no_arrays("x", given)
    array = np.asarray(given)
    if array.dtype == object:
        raise _no_arrays("x", given)
    return array


def _no_arrays(name: str, given: Any) -> DataError:
    return DataError(
        f"{name} must be arrays. Received: {type(given).__name__}. What is spent "
        "follows from how examples are drawn, so fit() draws the batches itself. Pass "
        "x and y as NumPy arrays or tensors."
    )


def batch_size(value: Any, examples: int) -> int:
    """A batch size that fits the number of examples."""
    size = checks.count(value, name="batch_size")
    if size > examples:
        raise checks.refused(
            size, name="batch_size", wanted=f"at most the {examples} examples"
        )
    return size
