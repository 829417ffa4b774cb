"""Gradients made smaller before the replicas exchange them.

Each replica adds what it could not send last time to its gradient, sends a smaller
version, and keeps the difference (error feedback; Karimireddy et al. 2019,
arXiv:1901.09847, algorithm 2):

    p = gradient + error
    sent = compress(p)
    error <- p - sent
    total = sum of `sent` over the replicas
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_dlopt.errors import ConfigError

State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Wire:
    """What replicas exchange tensors with, from the view of one of them.

    Attributes:
        add: tensor -> its sum over the replicas.
        gather: vector -> the replicas' vectors, one after the other.
        replicas: how many there are.
    """

    add: Callable[[Any], Any]
    gather: Callable[[Any], Any]
    replicas: int


class Compression:
    """Base class: a pure rule and the state it keeps per weight and replica."""

    def initial(self, shape: tuple[int, ...], number: int) -> dict[str, np.ndarray]:
        """The state at the start, for the weight with this number."""
        return {"error": np.zeros(shape, "float32")}

    def reduce(self, gradient: Any, state: State, wire: Wire) -> tuple[Any, State]:
        """The replicas' sum of compressed gradients, and the next state."""
        raise TypeError(f"{type(self).__name__} must define `reduce`.")

    def bytes_sent(self, shape: tuple[int, ...]) -> int:
        """Bytes that one replica hands over for one weight in one step."""
        raise TypeError(f"{type(self).__name__} must define `bytes_sent`.")


@dataclasses.dataclass(frozen=True)
class BFloat16(Compression):
    """Gradients added up in bfloat16: half the bytes.

    Example:
        >>> BFloat16().bytes_sent((10, 10))
        200
    """

    def reduce(self, gradient: Any, state: State, wire: Wire) -> tuple[Any, State]:
        import tensorflow as tf

        wanted = gradient + state["error"]
        sent = tf.cast(wanted, tf.bfloat16)
        total = tf.cast(wire.add(sent), wanted.dtype)
        return total, {"error": wanted - tf.cast(sent, wanted.dtype)}

    def bytes_sent(self, shape: tuple[int, ...]) -> int:
        return 2 * math.prod(shape)


@dataclasses.dataclass(frozen=True)
class TopK(Compression):
    """The largest entries of each gradient only, with their places.

    Source: Stich et al. 2018 (arXiv:1809.07599), algorithm 1.

    Args:
        share: of the entries that are sent, in (0, 1].

    Raises:
        ConfigError: for a share out of range.

    Example:
        >>> TopK(0.01).bytes_sent((100, 100))
        800
    """

    share: float = 0.01

    def __post_init__(self):
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(f"share must be in (0, 1]. Received: {self.share}.")

    def count(self, shape: tuple[int, ...]) -> int:
        """Entries that are sent of a weight of this shape."""
        return max(1, math.ceil(self.share * math.prod(shape)))

    def reduce(self, gradient: Any, state: State, wire: Wire) -> tuple[Any, State]:
        import tensorflow as tf

        shape = tuple(gradient.shape)
        wanted = tf.reshape(gradient + state["error"], [-1])
        _, places = tf.math.top_k(tf.abs(wanted), self.count(shape), sorted=False)
        values = tf.gather(wanted, places)
        size = [math.prod(shape)]
        total = tf.scatter_nd(wire.gather(places)[:, None], wire.gather(values), size)
        own = tf.scatter_nd(places[:, None], values, size)
        error = tf.reshape(wanted - own, shape)
        return tf.reshape(total, shape), {"error": error}

    def bytes_sent(self, shape: tuple[int, ...]) -> int:
        return 8 * self.count(shape)


@dataclasses.dataclass(frozen=True)
class PowerSGD(Compression):
    """A product of two narrow matrices in place of each gradient matrix.

    With the gradients' mean M as an n x m matrix (rows: all but the last axis), and Q
    of the last step (at first random):

        P = orthonormal columns of the replicas' mean of M Q
        Q = the replicas' mean of M^T P
        sent = P Q^T

    Vectors, and matrices that would not get smaller, are sent whole.

    Source: Vogels et al. 2019 (arXiv:1905.13727), algorithms 1 and 2. Differs from the
    paper: columns are made orthonormal by a QR decomposition, not by Gram-Schmidt; the
    momentum is left to the optimizer.

    Args:
        rank: columns of P and Q, 1 or more.
        seed: of the first Q.

    Raises:
        ConfigError: for a rank below 1.

    Example:
        >>> PowerSGD(rank=2).bytes_sent((100, 50))
        1200
    """

    rank: int = 2
    seed: int = 0

    def __post_init__(self):
        if self.rank < 1:
            raise ConfigError(f"rank must be 1 or more. Received: {self.rank}.")

    def _sides(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Rows and columns of the matrix, or None where it is sent whole."""
        if len(shape) < 2:
            return None
        rows, columns = math.prod(shape[:-1]), shape[-1]
        smaller = self.rank * (rows + columns) < rows * columns
        return (rows, columns) if smaller else None

    def initial(self, shape: tuple[int, ...], number: int) -> dict[str, np.ndarray]:
        sides = self._sides(shape)
        if sides is None:
            return {}
        rng = np.random.default_rng([self.seed, number])
        start = rng.normal(size=(sides[1], self.rank)).astype("float32")
        return {"error": np.zeros(shape, "float32"), "q": start}

    def reduce(self, gradient: Any, state: State, wire: Wire) -> tuple[Any, State]:
        import tensorflow as tf

        shape = tuple(gradient.shape)
        sides = self._sides(shape)
        if sides is None:
            return wire.add(gradient), {}
        wanted = tf.reshape(gradient + state["error"], sides)
        p, _ = tf.linalg.qr(wire.add(wanted @ state["q"]) / wire.replicas)
        q = wire.add(tf.transpose(wanted) @ p) / wire.replicas
        sent = p @ tf.transpose(q)
        error = tf.reshape(wanted - sent, shape)
        return tf.reshape(sent * wire.replicas, shape), {"error": error, "q": q}

    def bytes_sent(self, shape: tuple[int, ...]) -> int:
        sides = self._sides(shape)
        return 4 * (math.prod(shape) if sides is None else self.rank * sum(sides))
