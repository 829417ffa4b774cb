"""How a sparsity is shared out between the weights of a recipe entry."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.config import Value, frozen
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import Target


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """The scores of one weight's units.

    Attributes:
        target: where the weight is.
        shape: of the weight.
        scores: one for each unit, any shape.
    """

    target: Target
    shape: tuple[int, ...]
    scores: np.ndarray

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


class Distribution(Value):
    """Turns one sparsity into a number of units to remove from each weight.

    Subclasses write `shares` (they know the shapes only) or `counts`.
    """

    #: Whether a share of each weight follows from the weight's own shape and sparsity,
    #: so that weights need not be seen together.
    alone: bool = False

    def shares(self, group: Sequence[Units], sparsity: float | None) -> list[float]:
        """The share of zeros of each weight.

        Args:
            group: the weights of the recipe entry.
            sparsity: share of zeros over all of them; None where the distribution
                itself says how many.
        """
        raise TypeError(f"{type(self).__name__} must define shares().")

    def counts(self, group: Sequence[Units], sparsity: float | None) -> list[int]:
        """How many units of each weight are removed."""
        shares = self.shares(group, sparsity)
        return [
            round(share * units.scores.size)
            for share, units in zip(shares, group, strict=True)
        ]


@keras.saving.register_keras_serializable("keras_dlopt")
class Uniform(Distribution):
    """The same sparsity for every weight.

    Example:
        >>> two = [Units(Target(n), (10,), np.ones(10)) for n in "ab"]
        >>> Uniform().counts(two, 0.3)
        [3, 3]
    """

    alone = True

    def shares(self, group, sparsity):
        return [sparsity] * len(group)


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class Global(Distribution):
    """One threshold for all weights of the recipe entry: the lowest scores of all go.

    Equal scores go in the order of the weights, then of the index. A score that means
    the same in every weight helps: `Lamp()`, `Taylor()`, or magnitudes of a network
    whose layers are trained to similar sizes.

    Args:
        limit: largest share of zeros of one weight, so that none is lost whole.

    Raises:
        ConfigError: for a limit outside (0, 1].

    Example:
        >>> small = Units(Target("a"), (4,), np.array([1.0, 2, 3, 4]))
        >>> large = Units(Target("b"), (4,), np.array([5.0, 6, 7, 8]))
        >>> [d.counts([small, large], 0.5) for d in (Global(), Global(0.75))]
        [[4, 0], [3, 1]]

    Source: Lee et al., "SNIP" (arXiv:1810.02340), algorithm 1; Frankle and Carbin
    (arXiv:1803.03635), section 2.
    """

    limit: float = 1.0

    def __post_init__(self):
        self.keep(limit=checks.share(self.limit, name="limit"))

    def counts(self, group, sparsity):
        scores, owner, weight = [], [], []
        for i, units in enumerate(group):
            flat = np.sort(units.scores.ravel())
            most = math.floor(self.limit * flat.size)
            scores.append(flat[:most])
            owner.append(np.full(most, i))
            weight.append(np.full(most, units.size / flat.size))
        order = np.argsort(np.concatenate(scores), kind="stable")
        gone = np.cumsum(np.concatenate(weight)[order])
        wanted = round(sparsity * sum(units.size for units in group))
        # Slack for sums of unit sizes that are not whole.
        taken = np.concatenate(owner)[order][: np.searchsorted(gone, wanted + 1e-6)]
        return np.bincount(taken, minlength=len(group)).tolist()


@keras.saving.register_keras_serializable("keras_dlopt")
class ERK(Distribution):
    """Large weights become sparser than small ones, by their dimensions.

    The density of a weight of shape (d_1, ..., d_k) is

        epsilon * (d_1 + ... + d_k) / (d_1 * ... * d_k),   at most 1

    with epsilon such that the sparsity of all weights together is the one asked for.

    Example:
        >>> units = [Units(Target(n), s, np.ones(s)) for n, s in
        ...          {"a": (4, 4), "b": (40, 40)}.items()]
        >>> ERK().counts(units, 0.9)
        [1, 1453]

    Source: Evci et al., "Rigging the Lottery" (arXiv:1911.11134), section 3,
    "Erdos-Renyi-Kernel".
    """

    def shares(self, group, sparsity):
        sizes = np.array([units.size for units in group], "float64")
        sums = np.array([sum(units.shape) for units in group], "float64")
        density = spread(sums / sizes, sizes, (1 - sparsity) * sizes.sum())
        return (1 - density).tolist()


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class BySensitivity(Distribution):
    """Insensitive weights become sparser than sensitive ones.

    Args:
        of: path of a weight, or the last parts of it -> either its share of zeros, or
            its measured curve: pairs (sparsity, loss of quality), rising.

            Shares are taken as they are when `Prune` is given no sparsity, and are
            otherwise all multiplied by the factor (none above `limit`) that gives the
            sparsity asked for. From curves, every weight gets the sparsity at which it
            loses the same quality; the loss is the one that gives the sparsity asked
            for.
        limit: largest share of zeros of one weight.

    Raises:
        ConfigError: for anything else, and for weights that are not in it.

    Example:
        >>> two = [Units(Target(f"{n}/kernel"), (100,), np.ones(100)) for n in "ab"]
        >>> BySensitivity({"a/kernel": 0.9, "b/kernel": 0.5}).counts(two, None)
        [90, 50]
        >>> curves = {"a": [(0.0, 0.0), (1.0, 1.0)], "b": [(0.0, 0.0), (1.0, 3.0)]}
        >>> BySensitivity(curves).counts(two, 0.5)
        [75, 25]

    Source: Han et al. (arXiv:1506.02626), section 5 and figure 7.
    """

    of: Mapping[str, float | Sequence[tuple[float, float]]]
    limit: float = 1.0

    def __post_init__(self):
        if not isinstance(self.of, Mapping) or not self.of:
            raise ConfigError(
                "of must map paths of weights to shares of zeros, such as "
                f"{{'conv1/kernel': 0.5}}, or to curves. Received: {self.of!r}."
            )
        self.keep(limit=checks.share(self.limit, name="limit"))
        checked = {path: _checked(path, value) for path, value in self.of.items()}
        if len({isinstance(v, float) for v in checked.values()}) > 1:
            raise ConfigError(
                "of must hold shares for all weights, or curves for all. "
                f"Received: {dict(self.of)!r}."
            )
        self.keep(of=checked)

    @property
    def says_how_many(self) -> bool:
        """Whether it holds shares, so that no sparsity is needed."""
        return isinstance(next(iter(self.of.values())), float)

    def shares(self, group, sparsity):
        entries = [self._entry(units.target) for units in group]
        sizes = np.array([units.size for units in group], "float64")
        wanted = None if sparsity is None else sparsity * sizes.sum()
        if self.says_how_many:
            given = np.array(entries)
            if wanted is None:
                return np.minimum(given, self.limit).tolist()
            return spread(given, sizes, wanted, limit=self.limit).tolist()
        top = max(points[-1][1] for points in entries)
        low, high = 0.0, top
        for _ in range(100):
            loss = (low + high) / 2
            shares = np.array([_sparsity_at(points, loss) for points in entries])
            shares = np.minimum(shares, self.limit)
            low, high = (low, loss) if shares @ sizes > wanted else (loss, high)
        return shares.tolist()

    def _entry(self, target):
        for path, value in self.of.items():
            parts = f"/{target.path}/"
            if parts.endswith(f"/{path}/") or parts.startswith(f"/{path}/"):
                return value
        raise ConfigError(
            f"BySensitivity says nothing about {target.path!r}. It knows: "
            f"{list(self.of)}. Add it, or leave it out of the recipe entry."
        )


def _checked(path, value):
    with contextlib.suppress(ConfigError):
        return checks.decay(value, name=path)
    try:
        points = tuple((float(s), float(loss)) for s, loss in value)
    except (TypeError, ValueError):
        points = ()
    rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(points))
    if not points or not rising or points[0][0] < 0 or points[-1][0] > 1:
        raise ConfigError(
            f"The sensitivity of {path!r} must be a share of zeros in [0, 1), or pairs "
            "(sparsity in [0, 1], loss of quality) that rise in both. "
            f"Received: {value!r}."
        )
    return points


def _sparsity_at(points, loss):
    """The largest sparsity that loses no more, on straight lines between points."""
    for (s0, l0), (s1, l1) in reversed(list(itertools.pairwise(points))):
        if loss >= l1:
            return s1
        if loss >= l0:
            return s0 + (s1 - s0) * (loss - l0) / (l1 - l0)
    return points[0][0] if loss >= points[0][1] else 0.0


def spread(
    raw: np.ndarray, sizes: np.ndarray, total: float, *, limit: float = 1.0
) -> np.ndarray:
    """min(limit, c * raw) with c such that its sum over all elements is `total`.

    Args:
        raw: a positive share for each tensor.
        sizes: elements of each tensor.
        total: wanted number of elements; more than all allow gives all.
        limit: the largest share.
    """
    full = np.zeros(len(raw), bool)
    for _ in range(len(raw) + 1):
        left = total - limit * sizes[full].sum()
        mass = (raw * sizes)[~full].sum()
        factor = left / mass if mass > 0 else 0.0
        over = ~full & (factor * raw > limit)
        if not over.any():
            break
        full |= over
    return np.where(full, limit, np.clip(factor * raw, 0.0, limit))
