"""Structured pruning: the least important channels leave, layers become smaller."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.normalization import measure_normalization
from keras_dlopt.select import rank
from keras_dlopt.surgery.carrying import carry_optimizer
from keras_dlopt.surgery.dependencies import Dependencies, dependencies
from keras_dlopt.surgery.removal import without
from keras_dlopt.surgery.report import RemovalReport, report_on
from keras_dlopt.surgery.scores import ChannelNorm, ChannelScore, Measured, group_scores
from keras_dlopt.surgery.selection import Selection, absolute
from keras_dlopt.surgery.sizes import Sizes
from keras_dlopt.transforms.base import Transform
from keras_dlopt.transforms.batches import DrawnBatches
from keras_dlopt.transforms.model import transform
from keras_dlopt.transforms.prune.score import Score
from keras_dlopt.transforms.recipe import Recipe
from keras_dlopt.transforms.statistics import Statistics

_DEFAULT = ChannelNorm()


def prune_channels(
    model: keras.Model,
    *,
    parameters: float | None = None,
    macs: float | None = None,
    bytes: float | None = None,
    cost: Callable[[keras.Model], float] | None = None,
    at_most: float | None = None,
    score: ChannelScore | Score = _DEFAULT,
    data: Any = None,
    batches: int = 8,
    batch_size: int = 64,
    multiple: int = 8,
    limits: Mapping[str, float] | None = None,
    max_share: float = 0.9,
    normalized: bool = False,
    example: Any = None,
    seed: int = 0,
    optimizer_state: bool = False,
) -> tuple[keras.Model, RemovalReport]:
    """A smaller model without its least important channels.

    Channels leave in the groups that `dependencies` finds, so residual sums, gates and
    shared layers stay whole. What is left computes what the old model computes with
    these channels at zero; train it on afterwards. A network of the same shape trained
    from the start for as long may be as good: compare.

    Args:
        model: a built Keras model; it is not changed.
        parameters: target: below 1 the share of parameters that stays, else a number.
        macs: the same of multiply-accumulates for one example.
        bytes: the same of the weights' bytes in memory.
        cost: any other cost, a function of a model, such as a measured latency; about a
            dozen models are built to meet it.
        at_most: target of `cost`: below 1 a share of the model's, else a number.
        score: how much channels matter: `ChannelNorm`, `NormalizationScale`,
            `GeometricMedian`, or a score of single weights such as `prune.Taylor()`.
        data: `(x, y)` or a data set of batches, for scores on data, which need a
            compiled model; also x alone. With data the statistics of BatchNormalization
            are measured anew in the smaller model.
        batches: how many batches of data are used.
        batch_size: examples a batch, for arrays.
        multiple: layers are left with multiples of so many channels, which kernels use
            well; 1 for any number.
        limits: path of a layer, or a pattern such as `"stage1_*"` -> the largest share
            of its channels that may leave.
        max_share: the same for all other layers.
        normalized: whether channels that `LayerNormalization` and its kin normalize
            together may leave, too. Means and variances are then those of the channels
            that stay: the model changes by more than their zeros.
        example: a batch of inputs, for models that do not know their input's shape.
        seed: of the draw of examples.
        optimizer_state: whether the optimizer's state of what survives goes over:
            moments, averages of weights, the count of steps.

    Returns:
        A new model, an ordinary one with the same layer names and compiled state; and a
        report of what left and what is held in place.

    Raises:
        ConfigError: unless there is one target, if it cannot be met, for limits that
            match nothing, and for a score on data without data.
        ModelError: for a model that is not built, cannot be traced or built anew; with
            `optimizer_state`, if there is no state or it cannot be cut.

    Example:
        >>> net = keras.Sequential([keras.Input((16,)),
        ...     keras.layers.Dense(64, activation="relu", name="a"),
        ...     keras.layers.Dense(2)])
        >>> small, report = prune_channels(net, parameters=0.6)
        >>> small.get_layer("a").units
        32

    Source: Fang et al., "DepGraph: Towards Any Structural Pruning" (arXiv:2301.12900).
    """
    name = _target(parameters=parameters, macs=macs, bytes=bytes, cost=cost)
    if (cost is None) != (at_most is None):
        raise ConfigError(
            "cost and at_most belong together, such as cost=seconds, at_most=0.5. "
            f"Received: cost={cost!r}, at_most={at_most!r}."
        )
    checks.count(multiple, name="multiple")
    checks.number(max_share, name="max_share", least=0, most=1)
    found = dependencies(model, example=example, normalized=normalized)
    drawn = None
    if data is not None:
        drawn = DrawnBatches(data, count=batches, batch_size=batch_size, seed=seed)
    measured = _measured(model, score, data, batches, batch_size, seed)
    selection = Selection(
        found,
        group_scores(found, score, measured),
        multiple=multiple,
        limits=limits or {},
        max_share=max_share,
    )
    wanted = {"parameters": parameters, "macs": macs, "bytes": bytes, "cost": at_most}
    count = _cost(found, name, cost)
    now = count(np.zeros(found.count, bool))
    target = absolute(wanted[name], now, name)
    gone = selection.meeting(count, target, name, cheap=cost is None)
    small = without(found, gone)
    if optimizer_state:
        carry_optimizer(model, small, found, gone, {})
    if drawn is not None:
        measure_normalization(small, (x for x, _, _ in drawn.at(0)))
    why = dict.fromkeys(np.flatnonzero(gone).tolist(), "least important")
    return small, report_on(model, small, found, gone, why)


def _target(**targets: Any) -> str:
    given = [name for name, value in targets.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(
            "prune_channels takes one target: parameters, macs, bytes or cost, such as "
            f"macs=0.5. Received: {given or 'none'}."
        )
    return given[0]


def _cost(
    found: Dependencies, name: str, cost: Callable[[Any], float] | None
) -> Callable[[np.ndarray], float]:
    sizes = Sizes(found)
    if name == "macs" and sizes.open:
        raise ConfigError(
            f"The multiply-accumulates of {sizes.open[0]!r} are not known, since the "
            "model leaves the size of its inputs open. Build it with a fixed size, or "
            "give parameters= or cost= as the target."
        )
    if cost is None:
        return getattr(sizes, name)
    known: dict[Any, float] = {}

    def measure(gone: np.ndarray) -> float:
        key = gone.tobytes()
        if key not in known:
            known[key] = float(cost(without(found, gone)))
        return known[key]

    return measure


class _Same(Transform):
    """The weight itself: what gradients are taken of."""

    def apply(self, weight, state, context):
        return weight


def _measured(model, score, data, batches, batch_size, seed) -> Measured | None:
    """What gives statistics on data, for scores that ask for some."""
    if not isinstance(score, ChannelScore | Score):
        raise ConfigError(
            "score must be a score of channels, such as ChannelNorm(), or of weights, "
            f"such as prune.Taylor(). Received: {score!r}."
        )
    if not getattr(score, "statistics", ()):
        return None
    if data is None or not getattr(model, "compiled", False):
        raise ConfigError(
            f"{score!r} needs gradients of the loss. Compile the model and give data="
            "(x, y), or use a score of the weights alone, such as ChannelNorm()."
        )
    probe = transform(model, Recipe([(rank(2, 3, 4, 5, 6), _Same())]))
    probe.compile_from_config(model.get_compile_config())
    statistics = Statistics(
        probe, data, batches=batches, batch_size=batch_size, seed=seed
    )
    pairs = zip(model.weights, probe.model.weights, strict=True)
    copies = {id(variable): copy for variable, copy in pairs}
    return lambda variable, name: statistics(copies[id(variable)], name, 0)
