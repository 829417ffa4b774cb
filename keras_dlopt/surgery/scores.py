"""How much a group of channels matters: its weights in all layers it passes."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.config import Value, frozen
from keras_dlopt.graph.targets import Target
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.surgery.dependencies import Dependencies
from keras_dlopt.transforms.base import Member
from keras_dlopt.transforms.prune.score import Score


class ChannelScore(Value):
    """An importance for each channel that a weight has along an axis.

    Beside these, the scores of single weights from `keras_dlopt.prune` serve as well: a
    channel then counts for the sum over its weights.
    """

    #: Whether numbers of different layers compare as they are.
    comparable: bool = False

    def __call__(self, name: str, rows: np.ndarray) -> np.ndarray | None:
        """The scores.

        Args:
            name: of the variable, such as `"kernel"` or `"gamma"`.
            rows: its values, (channels, rest).

        Returns:
            One number of at least 0 a channel; None if this variable says nothing.
        """
        raise TypeError(f"{type(self).__name__} must define __call__().")


@keras.saving.register_keras_serializable("keras_dlopt")
@frozen
class ChannelNorm(ChannelScore):
    """The norm of all weights of a channel in a kernel.

    Args:
        order: 1 for the sum of magnitudes, 2 for the root of the sum of squares.

    Raises:
        ConfigError: for another order.

    Example:
        >>> ChannelNorm(2)("kernel", np.array([[3.0, 4.0], [1.0, 0.0]])).tolist()
        [5.0, 1.0]

    Source: Li et al., "Pruning Filters for Efficient ConvNets" (arXiv:1608.08710),
    section 3.1; over all layers of a group as in Fang et al., "DepGraph"
    (arXiv:2301.12900), section 3.3.
    """

    order: int = 2

    def __post_init__(self):
        checks.choice(self.order, name="order", choices=(1, 2))

    def __call__(self, name, rows):
        if name == "gamma" or rows.shape[1] == 1:
            return None
        return np.linalg.norm(rows, ord=self.order, axis=1)


@keras.saving.register_keras_serializable("keras_dlopt")
class NormalizationScale(ChannelScore):
    """|gamma| of the BatchNormalization that a channel passes.

    Channels without one stay. Meant for networks that were trained with an L1 penalty
    on gamma.

    Example:
        >>> NormalizationScale()("gamma", np.array([[-2.0], [0.5]])).tolist()
        [2.0, 0.5]

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network
    Slimming" (arXiv:1708.06519), section 3.
    """

    comparable = True

    def __call__(self, name, rows):
        return np.abs(rows[:, 0]) if name == "gamma" else None


@keras.saving.register_keras_serializable("keras_dlopt")
class GeometricMedian(ChannelScore):
    """The sum of distances to all other channels of the kernel; a small one has twins.

        g_i = sum_j ||w_i - w_j||

    Example:
        >>> GeometricMedian()("kernel", np.array([[0.0, 0], [0, 1], [0, 3]])).tolist()
        [4.0, 3.0, 5.0]

    Source: He et al., "Filter Pruning via Geometric Median" (arXiv:1811.00250),
    equation 6.
    """

    def __call__(self, name, rows):
        if name == "gamma" or rows.shape[1] == 1:
            return None
        rows = rows.astype("float64")
        squares = np.square(rows).sum(axis=1)
        products = squares[:, None] + squares - 2 * rows @ rows.T
        return np.sqrt(np.maximum(products, 0)).sum(axis=1)


Measured = Callable[[Any, str], np.ndarray]


def group_scores(
    found: Dependencies, score: ChannelScore | Score, measured: Measured | None = None
) -> np.ndarray:
    """The importance of each group; infinite where the score says nothing of it.

    Scores of different layers are divided by their mean, unless they compare as they
    are, and those of one group are averaged; those that compare are added up.

    Args:
        found: the dependencies of a model.
        score: of channels or single weights.
        measured: variable, name of a statistic -> its values, for scores on data.
    """
    comparable = (
        bool(score.statistics) if isinstance(score, Score) else score.comparable
    )
    total, count = np.zeros(found.count), np.zeros(found.count)
    for place, (path, variable, axis, ids) in enumerate(_axes(found)):
        values = _channels(score, path, variable, axis, measured, place)
        if values is None:
            continue
        labels = found.labels[ids]
        sums = np.bincount(labels, values, found.count)
        there = np.bincount(labels, minlength=found.count) > 0
        if not comparable:
            sums = sums / (sums[there].mean() or 1.0)
        total += sums
        count += there
    scores = total if comparable else total / np.maximum(count, 1)
    return np.where(count > 0, scores, np.inf)


def _axes(found: Dependencies) -> Iterator[tuple[str, Any, int, np.ndarray]]:
    for place in found.survey.places.values():
        for variable, axes in place.weights.values():
            for axis, ids in axes.items():
                yield f"{place.path}/{variable.name}", variable, axis, ids


def _channels(score, path, variable, axis, measured, place) -> np.ndarray | None:
    """The score of each channel along an axis of a variable."""
    weight = to_numpy(variable).astype("float64")
    name = path.rpartition("/")[2]
    if isinstance(score, ChannelScore):
        rows = np.moveaxis(weight, axis, 0)
        return score(name, rows.reshape(len(rows), -1))
    if weight.ndim < 2:
        return None
    statistics = {key: measured(variable, key) for key in score.statistics if measured}
    member = Member(Target(path, variable=variable), weight, {}, statistics, place)
    rows = np.moveaxis(np.asarray(score(member)), axis, 0)
    return rows.reshape(len(rows), -1).sum(axis=1)
