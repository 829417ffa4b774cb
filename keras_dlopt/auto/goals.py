"""From a goal in bytes to a recipe, by coding what the recipe would leave."""

import dataclasses
import math
import pathlib
import tempfile

import keras

from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.graph.folding import fold_batch_normalization
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.graph.walk import as_functional, layers_below, walk
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.schedules import PolynomialSparsity
from keras_dlopt.select import Selector, at, named, rank
from keras_dlopt.storage import Ledger, save_compressed
from keras_dlopt.storage.records import write_records
from keras_dlopt.transforms import (
    Cluster,
    FakeQuant,
    Prune,
    RateAware,
    Recipe,
    Transform,
    TransformedModel,
)
from keras_dlopt.transforms.prune import Global, Lamp

WEIGHTS = rank(2, 3, 4, 5)
CODED = WEIGHTS | rank(1) & named("bias", "beta", "gamma")
MOST = 0.998  # share of zeros that is still tried
FOUND = 0.9998  # where training finds the zeros
STEERED = 500  # steps that steering a price towards a goal takes
_HALVINGS = 7
PRUNED, CLUSTERED = 0.45, 0.75  # shares of the training at which these are done


@dataclasses.dataclass(frozen=True)
class Strength:
    """How much is taken from a model's kernels.

    Attributes:
        sparsity: share of zeros over all kernels, spread by LAMP scores.
        clusters: shared values a kernel, zero not counted; None for integers.
        bits: of the integers.
    """

    sparsity: float = 0.0
    clusters: int | None = None
    bits: int = 8

    def recipe(self, steps: int | None = None, where: Selector = WEIGHTS) -> Recipe:
        """The recipe, with its schedule over so many steps; None does all at once."""
        chain: Transform
        end, begin = (0, 0) if steps is None else _milestones(steps)
        if self.clusters is None:
            chain = FakeQuant(bits=self.bits)
        else:
            chain = Cluster(self.clusters, begin=begin)
        if self.sparsity:
            level = self.sparsity if steps is None else self._schedule(end)
            chain = Prune(level, score=Lamp(), distribution=Global(0.999)) >> chain
        return Recipe([(where, chain)])

    def _schedule(self, end: int) -> PolynomialSparsity:
        return PolynomialSparsity(self.sparsity, end=end, frequency=max(end // 50, 1))

    def __str__(self) -> str:
        values = f"{self.bits} bits"
        if self.clusters:
            values = f"{self.clusters} values a kernel"
        return f"{self.sparsity:.1%} zeros, {values}" if self.sparsity else values


def rate_recipe(parent: "Parent", goal: int, steps: int) -> Recipe:
    """Training towards a file of so many bytes.

    What no recipe codes, such as the description and the statistics, is taken off.
    """
    left = goal - parent.beside(CODED)
    every = max(steps // 200, 1)
    rate_aware = RateAware(max(round(left), goal // 4), end=steps, frequency=every)
    return Recipe([(parent.but(CODED), rate_aware)])


def _milestones(steps: int) -> tuple[int, int]:
    """The steps at which the zeros are all there, and values begin to be shared."""
    end = max(round(PRUNED * steps), 1)
    return end, max(round(CLUSTERED * steps), end)


def coded(model: keras.Model) -> Ledger:
    """The account of the model's file; `data` is the file itself."""
    with tempfile.TemporaryDirectory() as folder:
        return save_compressed(model, pathlib.Path(folder) / "model.dlopt")


def plain_bytes(model: keras.Model) -> int:
    """Size of the variables as they are in memory, without those of metrics."""
    skip = {id(variable) for variable in model.metrics_variables}
    kept = [v for v in model.variables if id(v) not in skip]
    return sum(to_numpy(v).nbytes for v in kept)


def absorbed(model: keras.Model) -> keras.Model:
    """The model with BatchNormalization in the kernels before it, where it can be.

    Its statistics are never rounded, and can be most of a small file. The outputs
    differ by rounding only.
    """
    norms = layers_below(model, keras.layers.BatchNormalization)
    if not norms or as_functional(model) is None:
        return model
    try:
        return fold_batch_normalization(model)
    except ModelError:  # its layers cannot be rebuilt
        return model


class Parent:
    """A given model, its file, and what the file would be with other weights.

    Args:
        model: a built Keras model, which stays as it is.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self._copy = copy_model(model)
        # Of the copy: a model that is made from it has its names, and their bytes.
        self.ledger = coded(self._copy)
        for _, layer, _ in walk(self._copy):
            layer.trainable = True  # what is frozen still is a weight
        self._targets = weight_targets(self._copy)
        place = {id(weight): i for i, weight in enumerate(self._copy.weights)}
        rows = self.ledger.rows
        self._bits = {t.path: rows[place[id(t.variable)]].bits for t in self._targets}

    def but(self, where: Selector) -> Selector:
        """A selector without the statistics that layers count and nobody trains."""
        counted = [t for t in self._targets if not t.variable.trainable]
        paths = [target.path for target in counted if where(target)]
        return where & ~at(*paths) if paths else where

    def beside(self, where: Selector) -> float:
        """Bytes of the file that are not those of the selected weights."""
        where = self.but(where)
        bits = sum(self._bits[t.path] for t in self._targets if where(t))
        return self.ledger.file_bytes - bits / 8

    def size(self, strength: Strength) -> int:
        """Bytes of the file if all were done at once, without writing it.

        The weights are coded as they would be in the file. What is left out is reading
        it back, by far the most of the time, and what equal weights save.
        """
        recipe = strength.recipe(where=self.but(WEIGHTS))
        small = TransformedModel(self._copy, recipe)
        made = list(small.final_values())
        small.release()
        arrays = [value for _, value, _ in made]
        records = write_records(arrays, lambda i: made[i][2])
        before = sum(self._bits[target.path] for target, _, _ in made)
        return self.ledger.file_bytes - before // 8 + sum(map(len, records))


def strength_for(
    parent: Parent, goal: int, *, clusters: int = 16, found: bool = False
) -> Strength:
    """The mildest of three steps that codes the model into a number of bytes.

    Integers of 8 bits, shared values, then zeros as well, as few as it takes. Each is
    done to a copy at once, without training, and coded.

    Args:
        parent: the model.
        goal: bytes of the file.
        clusters: shared values a kernel.
        found: whether training finds the zeros, of biases as well; then the most that
            may be are given.

    Raises:
        ConfigError: for a goal that no share of zeros reaches; the text has the size
            that is left.
    """
    for strength in (Strength(), Strength(clusters=clusters)):
        if parent.size(strength) <= goal:
            return strength
    low, high = 0.0, FOUND if found else MOST
    left, biases = parent.size(Strength(high, clusters)), ""
    if found:
        left += round(parent.beside(CODED) - parent.beside(WEIGHTS))
        biases = ", and without biases,"
    if left > goal:
        raise ConfigError(
            f"{parent.model.name!r} cannot be coded into {goal:,} bytes: with "
            f"{high:.2%} of its kernels zero{biases} the file still has {left:,}. "
            "Allow that many, remove channels first (prune_channels), or start from a "
            "smaller network."
        )
    for _ in range(0 if found else _HALVINGS):
        # Halfway in what is kept, since that is what costs.
        middle = 1 - math.sqrt((1 - low) * (1 - high))
        if parent.size(Strength(middle, clusters)) <= goal:
            high = middle
        else:
            low = middle
    return Strength(high, clusters)
