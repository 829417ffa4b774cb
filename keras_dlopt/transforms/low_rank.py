"""Low rank: a weight as a product of small ones."""

import math
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.kinds import is_product
from keras_dlopt.graph.rebuilding import reaches
from keras_dlopt.graph.targets import Target, weight_targets
from keras_dlopt.graph.walk import is_functional
from keras_dlopt.select import Selector, at, named
from keras_dlopt.transforms.base import State, Transform
from keras_dlopt.transforms.lookup import without_gradient
from keras_dlopt.transforms.recipe import Recipe

Method = Literal["svd", "tucker"]
METHODS: tuple[Method, ...] = ("svd", "tucker")


def modes(weight: np.ndarray, method: str) -> list[np.ndarray]:
    """The singular values that say how much each rank keeps.

    Returns:
        For `"svd"`, and for matrices, those of the (everything else, outputs) matrix;
        for `"tucker"` those of the inputs' and of the outputs' unfolding.
    """
    weight = np.asarray(weight, "float64")
    if method == "svd" or weight.ndim < 3:
        flat = weight.reshape(-1, weight.shape[-1])
        return [np.linalg.svd(flat, compute_uv=False)]
    return [np.linalg.svd(_unfold(weight, a), compute_uv=False) for a in (-2, -1)]


def _unfold(weight: np.ndarray, axis: int) -> np.ndarray:
    moved = np.moveaxis(weight, axis, 0)
    return moved.reshape(moved.shape[0], -1)


def parameters(shape: tuple[int, ...], ranks: tuple[int, ...]) -> int:
    """The number of elements in the factors of a weight.

    Example:
        >>> parameters((3, 3, 64, 128), (16,)), parameters((3, 3, 64, 128), (16, 32))
        (11264, 9728)
    """
    if len(ranks) == 1:
        return (math.prod(shape[:-1]) + shape[-1]) * ranks[0]
    inner, outer = ranks
    core = math.prod(shape[:-2]) * inner * outer
    return shape[-2] * inner + core + outer * shape[-1]


@keras.saving.register_keras_serializable("keras_dlopt")
class LowRank(Transform):
    """Replaces a weight by a product of trained factors.

    `"svd"` flattens a kernel to (everything else) x (outputs), W = A B; for a
    convolution A is one with `rank` filters and B a 1x1 convolution. `"tucker"` keeps
    the spatial axes: a 1x1 convolution to r1 channels, one from r1 to r2 channels, a
    1x1 convolution to the outputs. Both start at the best (svd) or a nearly best
    (tucker) approximation of the weight. `factorize` makes real layers of them.

    State: the factors, trained. The weight itself is no longer trained.

    Args:
        rank: number of components, or (r1, r2) for `"tucker"`; more than a weight has
            means all of them. One of `rank` and `ratio` must be given; the state's
            shapes follow from it. `low_rank_recipe` finds ranks by energy or budget.
        ratio: share of the full rank, in (0, 1].
        method: `"svd"` or `"tucker"`; weights of two dimensions always take the svd.

    Raises:
        ConfigError: unless exactly one of `rank` and `ratio` is given, and for numbers
            out of range; when built, for weights with fewer than two dimensions.

    Example:
        >>> from keras_dlopt.graph.targets import Target
        >>> w = np.outer([1.0, 2.0], [3.0, 4.0]).astype("float32")
        >>> one = LowRank(1)
        >>> state = {k: s.value for k, s in one.init(Target("kernel"), w).items()}
        >>> one.evaluate(Target("kernel"), w, state).round(3).tolist()
        [[3.0, 4.0], [6.0, 8.0]]

    Source: Denton et al., "Exploiting Linear Structure Within Convolutional Networks"
    (arXiv:1404.0736), section 3.2; Tucker-2 as in Kim et al. (arXiv:1511.06530),
    section 3.1, by a truncated higher-order svd.
    """

    own_weight = True

    def __init__(
        self,
        rank: int | tuple[int, int] | None = None,
        *,
        ratio: float | None = None,
        method: Method = "svd",
    ):
        if (rank is None) == (ratio is None):
            raise ConfigError(
                "Give one of rank (a number, or two for 'tucker') and ratio (a share "
                f"of the full rank). Received: rank={rank!r}, ratio={ratio!r}."
            )
        self.method = checks.choice(method, name="method", choices=METHODS)
        self.ratio = checks.optional(checks.share, ratio, name="ratio")
        if isinstance(rank, list | tuple) and len(rank) == 1:
            rank = rank[0]
        self.rank: Any = None
        if isinstance(rank, list | tuple) and method == "tucker":
            self.rank = checks.several(rank, checks.count, name="rank", length=2)
        elif rank is not None:
            self.rank = checks.count(rank, name="rank", hint="'tucker' also takes two.")

    def ranks(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The ranks of a weight of this shape: one for svd, two for tucker."""
        if self.method == "svd" or len(shape) < 3:
            full: tuple[int, ...] = (min(math.prod(shape[:-1]), shape[-1]),)
        else:
            full = (shape[-2], shape[-1])
        if self.ratio is not None:
            return tuple(max(1, round(self.ratio * n)) for n in full)
        asked = self.rank if isinstance(self.rank, tuple) else (self.rank,) * len(full)
        return tuple(min(r, n) for r, n in zip(asked[-len(full) :], full, strict=True))

    def init(self, target, weight):
        if weight.ndim < 2:
            raise ConfigError(
                f"LowRank needs weights of two or more dimensions. {target.path!r} has "
                f"shape {weight.shape}. Select kernels only: named('kernel')."
            )
        ranks = self.ranks(weight.shape)
        value = np.asarray(weight, "float64")
        if len(ranks) == 1:
            u, s, v = np.linalg.svd(
                value.reshape(-1, value.shape[-1]), full_matrices=False
            )
            root = np.sqrt(s[: ranks[0]])
            parts = {
                "first": u[:, : ranks[0]] * root,
                "last": root[:, None] * v[: ranks[0]],
            }
        else:
            first = np.linalg.svd(_unfold(value, -2))[0][:, : ranks[0]]
            last = np.linalg.svd(_unfold(value, -1))[0][:, : ranks[1]]
            core = np.einsum("...io,ir,oq->...rq", value, first, last)
            parts = {"first": first, "core": core, "last": last.T}
        return {k: State(v.astype("float32"), trainable=True) for k, v in parts.items()}

    def apply(self, weight, state, context):
        value = ops.reshape(product(state, ops), weight.shape)
        return without_gradient(weight, ops.cast(value, weight.dtype))

    def finalize(self, target, weight, state):
        return self.evaluate(target, weight, state), None


def product(state: dict[str, Any], xp: Any) -> Any:
    """The factors multiplied; the svd's product is still flat."""
    if "core" not in state:
        return xp.matmul(state["first"], state["last"])
    inner = xp.einsum("...rq,ir->...iq", state["core"], state["first"])
    return xp.matmul(inner, state["last"])


def _splits(target: Target) -> bool:
    """Whether `factorize` can split a layer; of subclassed models it could, inside."""
    written = not is_functional(target.parents[0])
    return is_product(target.layer) and (written or reaches(target.parents))


def low_rank_recipe(
    model: keras.Model,
    *,
    energy: float | None = None,
    budget: float | None = None,
    method: Method = "svd",
    select: Selector | None = None,
) -> Recipe:
    """A recipe with the ranks that keep an energy, or that fit a budget.

    The energy of a weight at a rank is the share of its squared singular values that
    the rank keeps. A budget is met by the highest energy, the same for all weights,
    whose factors fit. A weight whose factors would be no smaller is left out.

    Args:
        model: a built model, trained.
        energy: share to keep of each weight, in (0, 1].
        budget: share of the selected weights' elements to keep, in (0, 1].
        method: `"svd"` or `"tucker"`.
        select: which weights; None for the kernels of layers that `factorize` can
            split, Dense and Conv1D to Conv3D without groups.

    Returns:
        A `Recipe` of `LowRank` with whole ranks: plain data.

    Raises:
        ConfigError: unless exactly one of `energy` and `budget` is given, in range, or
            if the selector finds no weight; for a budget that rank 1 exceeds.

    Example:
        >>> keras.utils.set_random_seed(0)
        >>> net = keras.Sequential([keras.Input((32,)), keras.layers.Dense(32)])
        >>> for selector, transform in low_rank_recipe(net, budget=0.5).entries:
        ...     print(selector.paths, transform.rank)
        ('dense/kernel',) 8
    """
    if (energy is None) == (budget is None):
        raise ConfigError(
            "Give one of energy and budget, each a share in (0, 1]. Received: "
            f"energy={energy!r}, budget={budget!r}."
        )
    checks.choice(method, name="method", choices=METHODS)
    energy = checks.optional(checks.share, energy, name="energy")
    budget = checks.optional(checks.share, budget, name="budget")
    chosen = select or named("kernel")
    targets = [
        t
        for t in weight_targets(model)
        if chosen(t) and len(t.shape or ()) >= 2 and (select is not None or _splits(t))
    ]
    if not targets:
        raise ConfigError(
            "low_rank_recipe found no weight of two or more dimensions"
            f"{'' if select else ' in a layer that factorize can split'}. The selector "
            f"is {chosen.to_dict()}; the weights are "
            f"{[t.path for t in weight_targets(model)][:20]}."
            f"{'' if select else ' Give select= to choose others.'}"
        )
    spectra = {
        t.path: (t.shape or (), modes(ops.convert_to_numpy(t.variable), method))
        for t in targets
    }
    if energy is None:
        energy = _energy_within(spectra, budget or 1.0)
    groups: dict[tuple[int, ...], list[str]] = {}
    for path, (shape, values) in spectra.items():
        ranks = tuple(_rank(v, energy) for v in values)
        if parameters(shape, ranks) < math.prod(shape):
            groups.setdefault(ranks, []).append(path)
    return Recipe(
        (at(*paths), LowRank(r if len(r) == 2 else r[0], method=method))
        for r, paths in groups.items()
    )


def _rank(values: np.ndarray, energy: float) -> int:
    kept = np.cumsum(np.square(values))
    total = kept[-1] or 1.0
    # The last digit of a sum must not cost a component.
    return int(np.searchsorted(kept / total, energy - 1e-12) + 1) if kept[-1] else 1


def _energy_within(spectra: dict[str, Any], budget: float) -> float:
    """The highest common energy whose factors fit the budget, by bisection."""

    def size(energy):
        return sum(
            min(
                parameters(shape, tuple(_rank(v, energy) for v in values)),
                math.prod(shape),
            )
            for shape, values in spectra.values()
        )

    allowed = budget * sum(math.prod(shape) for shape, _ in spectra.values())
    if size(0.0) > allowed:
        raise ConfigError(
            f"A budget of {budget:g} allows {int(allowed)} elements, and rank 1 "
            f"everywhere takes {size(0.0)}. Raise it, or prune instead."
        )
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle) <= allowed else (low, middle)
    return low
