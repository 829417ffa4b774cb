"""Which weights stand or fall together."""

from typing import Any, Literal

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.config import Value, frozen
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.channels import input_axes, output_axes
from keras_dlopt.graph.targets import Target
from keras_dlopt.transforms.prune.masks import (
    Ties,
    mask_from_threshold,
    mask_without,
)

Pooling = Literal["mean", "max"]


class Pattern(Value):
    """The units that a mask is made of.

    `pool` turns a score for each weight into a score for each unit, `expand` a mask of
    units into a mask of weights. Subclasses write both, and `check`.
    """

    #: The share of zeros, where the pattern itself fixes it.
    fixed: float | None = None

    def check(self, target: Target, shape: tuple[int, ...]) -> None:
        """Raises `ConfigError` if weights of this shape cannot have the pattern."""

    def pool(self, target: Target, scores: np.ndarray) -> np.ndarray:
        """The score of each unit."""
        return scores

    def expand(self, target: Target, mask: np.ndarray, shape: tuple[int, ...]) -> Any:
        """The mask of the weights, from a mask of the units."""
        return mask

    def mask(self, units: np.ndarray, zeros: int, sparsity: float) -> np.ndarray:
        """The mask of the units: without the `zeros` lowest scores.

        Args:
            units: what `pool` returned.
            zeros: units to remove.
            sparsity: the share that the schedule asks for.
        """
        return mask_without(units, zeros)


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class Unstructured(Pattern):
    """Every weight for itself.

    Args:
        ties: what happens to equal scores at the threshold: `"index"` removes the first
            ones, so that the number of zeros is exact; `"keep"` keeps them all and
            rounds as TensorFlow Model Optimization does, for the same masks.

    Raises:
        ConfigError: for other ties.

    Example:
        >>> Unstructured(ties="keep")
        Unstructured(ties='keep')
    """

    ties: Ties = "index"

    def __post_init__(self):
        checks.choice(self.ties, name="ties", choices=("index", "keep"))

    def mask(self, units, zeros, sparsity):
        if self.ties == "keep":
            return mask_from_threshold(units, sparsity)
        return mask_without(units, zeros)


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class NofM(Pattern):
    """At most n of every m neighbours along an axis stay.

    With sparsity s on the way there, each group keeps max(n, m - round(s m)). The
    pattern fixes the final sparsity, 1 - n / m.

    Args:
        n: weights that stay in a group, at least 1.
        m: size of a group, more than n.
        axis: along which the groups lie; -2 counts the input channels of dense and
            convolution kernels, as sparse matrix units want it. Its length must be a
            multiple of m.

    Raises:
        ConfigError: unless 1 <= n < m.

    Example:
        >>> NofM(2, 4).fixed
        0.5

    Source: Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks
    from Scratch" (arXiv:2102.04010), section 3.
    """

    n: int
    m: int
    axis: int = -2

    def __post_init__(self):
        for name, least in (("n", 1), ("m", 2), ("axis", None)):
            plain = checks.whole(
                getattr(self, name),
                name=name,
                least=least,
                hint="NofM(n, m) keeps n of every m weights along an axis.",
            )
            self.keep(**{name: plain})
        checks.ordered(strict=True, n=self.n, m=self.m)

    @property
    def fixed(self) -> float:  # type: ignore[override]
        """1 - n / m."""
        return 1 - self.n / self.m

    def check(self, target, shape):
        if not -len(shape) <= self.axis < len(shape):
            raise ConfigError(
                f"{target.path!r} has shape {shape}, so it has no axis {self.axis} for "
                f"NofM({self.n}, {self.m}). Select kernels only: named('kernel')."
            )
        if shape[self.axis] % self.m:
            raise ConfigError(
                f"NofM({self.n}, {self.m}) needs axis {self.axis} of {target.path!r} "
                f"to be a multiple of {self.m}. It has length {shape[self.axis]}, "
                f"shape {shape}. Leave this weight out of the recipe entry, or choose "
                "another axis."
            )

    def mask(self, units, zeros, sparsity):
        keep = max(self.n, self.m - round(sparsity * self.m))
        moved = np.moveaxis(units, self.axis, -1)
        groups = moved.reshape(-1, self.m)
        order = np.argsort(groups, axis=1, kind="stable")  # equal: the first ones go
        mask = np.ones(groups.shape, "float32")
        np.put_along_axis(mask, order[:, : self.m - keep], 0.0, axis=1)
        return np.moveaxis(mask.reshape(moved.shape), -1, self.axis)


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class Blocks(Pattern):
    """Rectangular blocks of the last axes, as cache lines and vector units like them.

    Args:
        shape: of a block, such as `(4, 1)`: it is laid over as many last axes. At the
            far edges blocks may be cut off.
        pooling: a block's score, `"mean"` or `"max"` of its weights' scores.

    Raises:
        ConfigError: for a shape that is not of positive whole numbers.

    Example:
        >>> scores = np.arange(8.0).reshape(2, 4)
        >>> Blocks((2, 2)).pool(Target("kernel"), scores).tolist()
        [[2.5, 4.5]]

    Source: Narang et al., "Block-Sparse Recurrent Neural Networks"
    (arXiv:1711.02782), section 3.1.
    """

    shape: tuple[int, ...]
    pooling: Pooling = "mean"

    def __post_init__(self):
        sizes = checks.several(
            self.shape, checks.count, name="shape", hint="It is as in Blocks((4, 1))."
        )
        checks.choice(self.pooling, name="pooling", choices=("mean", "max"))
        self.keep(shape=sizes)

    def check(self, target, shape):
        if len(self.shape) > len(shape):
            raise ConfigError(
                f"Blocks({self.shape}) needs a weight of rank {len(self.shape)} or "
                f"more. {target.path!r} has shape {shape}. Select kernels only: "
                "named('kernel')."
            )

    def pool(self, target, scores):
        skip = scores.ndim - len(self.shape)
        values = np.asarray(scores, "float64")
        for axis, size in enumerate(self.shape, skip):
            starts = np.arange(0, values.shape[axis], size)
            join = np.maximum if self.pooling == "max" else np.add
            values = join.reduceat(values, starts, axis=axis)
        if self.pooling == "max":
            return values
        return values / self._count(scores.shape)

    def _count(self, shape):
        """How many weights each block has; fewer at the edges."""
        count = np.ones(())
        for axis, length in enumerate(shape):
            size = self._size(axis, len(shape))
            starts = np.arange(0, length, size)
            count = np.multiply.outer(count, np.minimum(size, length - starts))
        return count

    def _size(self, axis, rank):
        skip = rank - len(self.shape)
        return 1 if axis < skip else self.shape[axis - skip]

    def expand(self, target, mask, shape):
        for axis, length in enumerate(shape):
            size = self._size(axis, len(shape))
            mask = np.repeat(mask, size, axis=axis)
            mask = mask.take(np.arange(length), axis=axis)
        return mask


@frozen
class Slices(Pattern):
    """All weights that share an index along one axis, or along several.

    The mask form: shapes stay, whole slices are zero.

    Args:
        pooling: a slice's score, `"mean"` or `"max"` of its weights' scores.
    """

    pooling: Pooling = "mean"

    def __post_init__(self):
        checks.choice(self.pooling, name="pooling", choices=("mean", "max"))

    def axes(self, target: Target, rank: int) -> tuple[int, ...]:
        """The axes whose indices name a slice."""
        raise TypeError(f"{type(self).__name__} must define axes().")

    def check(self, target, shape):
        if len(shape) < 2:
            raise ConfigError(
                f"{type(self).__name__}() needs weights of rank 2 or more. "
                f"{target.path!r} has shape {shape}. Select kernels only: "
                "named('kernel')."
            )

    def pool(self, target, scores):
        axes = self.axes(target, scores.ndim)
        other = tuple(a for a in range(scores.ndim) if a not in axes)
        reduce = np.max if self.pooling == "max" else np.mean
        return reduce(np.asarray(scores, "float64"), axis=other, keepdims=True)

    def expand(self, target, mask, shape):
        return np.broadcast_to(mask, shape).copy()


@keras.saving.register_keras_serializable("keras_dlopt")
class Rows(Slices):
    """All weights of one input: of a unit in dense kernels, of a channel in others.

    Example:
        >>> scores = np.array([[1.0, 3.0], [5.0, 7.0]])
        >>> Rows().pool(Target("kernel"), scores).tolist()
        [[2.0], [6.0]]
    """

    def axes(self, target, rank):
        return input_axes(target, rank)


@keras.saving.register_keras_serializable("keras_dlopt")
class Columns(Slices):
    """All weights of one index of the last axis: of an output unit in dense kernels.

    Example:
        >>> scores = np.array([[1.0, 3.0], [5.0, 7.0]])
        >>> Columns().pool(Target("kernel"), scores).tolist()
        [[3.0, 5.0]]
    """

    def axes(self, target, rank):
        return (rank - 1,)


@keras.saving.register_keras_serializable("keras_dlopt")
class Filters(Slices):
    """All weights of one output channel, also of depthwise and transposed kernels.

    Example:
        >>> Filters().axes(Target("conv/kernel"), 4)
        (3,)

    Source: Li et al., "Pruning Filters for Efficient ConvNets" (arXiv:1608.08710),
    section 3.
    """

    def axes(self, target, rank):
        return output_axes(target, rank)
