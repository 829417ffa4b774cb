"""New masks for a group of weights: choosing, exchanging."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_dlopt.schedules.regrowth import RegrowSparsity
from keras_dlopt.transforms.base import Member
from keras_dlopt.transforms.prune.distribution import Distribution, Units
from keras_dlopt.transforms.prune.masks import REMOVED, mask_without
from keras_dlopt.transforms.prune.pattern import Pattern
from keras_dlopt.transforms.prune.score import Score


def choose(
    group: Sequence[Member],
    sparsity: float | None,
    *,
    score: Score,
    pattern: Pattern,
    distribution: Distribution,
    every: bool = False,
) -> list[np.ndarray]:
    """The masks for a sparsity.

    Args:
        group: the weights, with their present masks.
        sparsity: share of zeros over all of them, or None if the distribution says it.
        score: importance of each weight.
        pattern: units that stand or fall together.
        distribution: how many units of each weight.
        every: whether removed weights are judged like the others; otherwise they go
            first, so that the set of zeros grows.
    """
    units = []
    for member in group:
        present = member.state["mask"] != 0
        if not every:
            # Seen as zero also where the latent value is not.
            weight = np.where(present, member.weight, np.zeros((), member.weight.dtype))
            member = dataclasses.replace(member, weight=weight)
        scores = score(member)
        if not every and not score.judges_removed:
            scores = np.where(present, scores, REMOVED)
        pooled = pattern.pool(member.target, scores)
        units.append(Units(member.target, member.weight.shape, pooled))
    counts = distribution.counts(units, sparsity)
    masks = []
    for one, count in zip(units, counts, strict=True):
        share = count / one.scores.size
        if distribution.alone and sparsity is not None:
            share = sparsity  # before rounding to whole units
        mask = pattern.mask(one.scores, count, share)
        masks.append(pattern.expand(one.target, mask, one.shape))
    return masks


def exchange(
    member: Member, schedule: RegrowSparsity, step: int, pattern: Pattern
) -> dict[str, np.ndarray]:
    """Drops the smallest weights and takes as many others back, at zero."""
    target, weight, mask = member.target, member.weight, member.state["mask"]
    present = pattern.pool(target, mask) > 0
    moved = round(schedule.exchanged(step) * int(present.sum()))
    moved = min(moved, int((~present).sum()))
    if moved == 0:
        return {}
    size = pattern.pool(target, np.abs(weight))
    size = np.where(present, size, np.inf)
    dropped = mask_without(size, moved) == 0
    if schedule.grow == "gradient":
        wish = pattern.pool(target, np.abs(member.statistics["gradient"]))
    else:
        rng = np.random.default_rng([schedule.seed, member.place, step])
        wish = rng.random(present.shape)
    # What is present does not grow, and what was dropped just now may: as in the paper.
    wish = np.where(present & ~dropped, REMOVED, wish)
    grown = _largest(wish, moved)
    kept = (present & ~dropped) | grown
    fresh = pattern.expand(target, (grown & ~present).astype("float32"), weight.shape)
    zero = np.zeros((), weight.dtype)
    return {
        "mask": pattern.expand(target, kept.astype("float32"), weight.shape),
        "weight": np.where(fresh != 0, zero, weight),
    }


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    return mask_without(values, values.size - count) != 0
