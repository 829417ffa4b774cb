"""From a goal in bytes to a recipe, by coding what the recipe would leave."""

import dataclasses
import math
import pathlib
import tempfile

import keras

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.schedules import PolynomialSparsity
from keras_dlopt.select import named, rank
from keras_dlopt.storage import ledger_of, save_compressed
from keras_dlopt.transforms import (
    Cluster,
    FakeQuant,
    Prune,
    RateAware,
    Recipe,
    Transform,
)
from keras_dlopt.transforms.model import transform
from keras_dlopt.transforms.prune import Global, Lamp

WEIGHTS = rank(2, 3, 4, 5)
# Statistics of normalizations are computed, not trained.
CODED = rank(1, 2, 3, 4, 5) & ~named("moving_mean", "moving_variance")
MOST = 0.998  # share of zeros that is still tried
_HALVINGS = 7
PRUNED, CLUSTERED = 0.45, 0.75  # shares of the training at which these are done


@dataclasses.dataclass(frozen=True)
class Strength:
    """How much is taken from a model's kernels.

    Attributes:
        sparsity: share of zeros over all kernels, spread by LAMP scores.
        clusters: shared values a kernel, zero not counted; None for integers of 8 bits.
    """

    sparsity: float = 0.0
    clusters: int | None = None

    def recipe(self, steps: int | None = None) -> Recipe:
        """The recipe, with its schedule over so many steps; None does all at once."""
        chain: Transform
        end, begin = (0, 0) if steps is None else _milestones(steps)
        if self.clusters is None:
            chain = FakeQuant(bits=8)
        else:
            chain = Cluster(self.clusters, begin=begin)
        if self.sparsity:
            level = self.sparsity if steps is None else self._schedule(end)
            chain = Prune(level, score=Lamp(), distribution=Global(0.999)) >> chain
        return Recipe([(WEIGHTS, chain)])

    def _schedule(self, end: int) -> PolynomialSparsity:
        return PolynomialSparsity(self.sparsity, end=end, frequency=max(end // 50, 1))

    def __str__(self) -> str:
        values = f"{self.clusters} values a kernel" if self.clusters else "8 bits"
        return f"{self.sparsity:.1%} zeros, {values}" if self.sparsity else values


def rate_recipe(model: keras.Model, goal: int, steps: int) -> Recipe:
    """Training towards a file of so many bytes.

    What no recipe codes, such as the description and the statistics, is taken off.
    """
    with tempfile.TemporaryDirectory() as folder:
        ledger = save_compressed(model, pathlib.Path(folder) / "model.dlopt")
    coded = {id(target.variable) for target in weight_targets(model) if CODED(target)}
    rows = zip(ledger.rows, model.weights, strict=False)
    rest = sum(row.bits for row, weight in rows if id(weight) not in coded) / 8
    left = goal - rest - ledger.architecture_bytes - ledger.container_bytes
    every = max(steps // 200, 1)
    rate_aware = RateAware(max(round(left), goal // 4), end=steps, frequency=every)
    return Recipe([(CODED, rate_aware)])


def _milestones(steps: int) -> tuple[int, int]:
    """The steps at which the zeros are all there, and values begin to be shared."""
    end = max(round(PRUNED * steps), 1)
    return end, max(round(CLUSTERED * steps), end)


def coded_bytes(model: keras.Model) -> int:
    """Size of the model's file."""
    with tempfile.TemporaryDirectory() as folder:
        return save_compressed(model, pathlib.Path(folder) / "model.dlopt").file_bytes


def plain_bytes(model: keras.Model) -> int:
    """Size of the variables as they are in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.dlopt"
        save_compressed(model, path)
        return ledger_of(path).plain_bytes


def strength_for(
    model: keras.Model, goal: int, *, clusters: int = 16, least: bool = True
) -> Strength:
    """The mildest of three steps that codes the model into a number of bytes.

    Integers of 8 bits, shared values, then zeros as well, as few as it takes. Each is
    done to a copy at once, without training, and its file is written and measured.

    Args:
        model: a built Keras model.
        goal: bytes of the file.
        clusters: shared values a kernel.
        least: whether to search for the least share of zeros; False takes the most.

    Raises:
        ConfigError: for a goal that no share of zeros reaches; the text has the size
            that is left.
    """

    def size(strength: Strength) -> int:
        return coded_bytes(transform(model, strength.recipe()))

    for strength in (Strength(), Strength(clusters=clusters)):
        if size(strength) <= goal:
            return strength
    low, high = 0.0, MOST
    left = size(Strength(high, clusters))
    if left > goal:
        raise ConfigError(
            f"{model.name!r} cannot be coded into {goal:,} bytes: with {MOST:.1%} of "
            f"its kernels zero the file still has {left:,}. Allow that many, remove "
            "channels first (prune_channels), or start from a smaller network."
        )
    for _ in range(_HALVINGS if least else 0):
        # Halfway in what is kept, since that is what costs.
        middle = 1 - math.sqrt((1 - low) * (1 - high))
        if size(Strength(middle, clusters)) <= goal:
            high = middle
        else:
            low = middle
    return Strength(high, clusters)
