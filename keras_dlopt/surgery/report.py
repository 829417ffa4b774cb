"""What a removal did: which channels left where, and what holds the others."""

import dataclasses
from typing import Any

import numpy as np

from keras_dlopt.surgery.dependencies import Dependencies, Pinned
from keras_dlopt.surgery.sizes import Sizes


@dataclasses.dataclass(frozen=True)
class Removed:
    """Channels that left one layer.

    Attributes:
        path: of the layer.
        channels: their indices among its outputs, in the old model.
        before: how many output channels it had.
        reasons: why, one for each.
    """

    path: str
    channels: tuple[int, ...]
    before: int
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RemovalReport:
    """What left a model, and what is held in place.

    Attributes:
        removed: the layers that lost channels.
        pinned: what holds channels in place, and why.
        parameters_before: of the model.
        parameters_after: of the new one.
        macs_before: multiply-accumulates of the layers that have a rule, for one
            example; None where the model leaves a size open.
        macs_after: of the new one.
        groups_removed: groups of channels that left.
        uneven: layers whose outputs change where they read padding.
    """

    removed: tuple[Removed, ...]
    pinned: tuple[Pinned, ...]
    parameters_before: int
    parameters_after: int
    macs_before: int | None
    macs_after: int | None
    groups_removed: int
    uneven: tuple[str, ...] = ()

    @property
    def channels_removed(self) -> int:
        """How many output channels left, over all layers that make them."""
        return sum(len(one.channels) for one in self.removed)

    def __str__(self) -> str:
        macs = ""
        if self.macs_before is not None:
            macs = f"MACs {self.macs_before:,} -> {self.macs_after:,}, "
        lines = [
            f"parameters {self.parameters_before:,} -> {self.parameters_after:,}, "
            + macs
            + f"{self.channels_removed} channels in {self.groups_removed} groups left"
        ]
        for one in self.removed:
            left = one.before - len(one.channels)
            kinds = ", ".join(sorted(set(one.reasons)))
            lines.append(f"  {one.path}: {one.before} -> {left} channels ({kinds})")
        lines += [f"  held by {pin}" for pin in self.pinned]
        return "\n".join(lines)


def report_on(
    model: Any,
    small: Any,
    found: Dependencies,
    gone: np.ndarray,
    reasons: dict[int, str],
) -> RemovalReport:
    """The report of a removal.

    Args:
        model: the old one.
        small: the new one.
        found: the dependencies of the old one.
        gone: for each group, whether it left.
        reasons: group -> why.
    """
    removed = []
    for path, ids in found.survey.made.items():
        labels = found.labels[ids]
        lost = np.flatnonzero(gone[labels])
        if len(lost):
            why = tuple(reasons.get(int(labels[i]), "") for i in lost)
            removed.append(Removed(path, tuple(lost.tolist()), len(ids), why))
    sizes = Sizes(found)
    known = not sizes.open
    return RemovalReport(
        tuple(removed),
        found.pinned,
        model.count_params(),
        small.count_params(),
        sizes.macs() if known else None,
        sizes.macs(gone) if known else None,
        int(gone.sum()),
    )
