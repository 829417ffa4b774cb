"""Which groups leave, so that a model meets a target."""

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.surgery.dependencies import Dependencies


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Groups that the same layers make: what one number of channels counts.

    Attributes:
        groups: from the least important one on.
        step: how many of them make up a multiple of channels.
        most: how many may leave.
    """

    groups: np.ndarray
    step: int
    most: int

    def rounded(self, wanted: int) -> int:
        """How many leave where so many would: what stays is a multiple of `step`."""
        n = len(self.groups)
        stays = self.step * max(round((n - min(wanted, n)) / self.step), 1)
        while n - stays > self.most:
            stays += self.step
        return max(n - stays, 0)

    def fewer(self, leaving: int) -> int:
        """The next smaller number that may leave."""
        n = len(self.groups)
        return max(n - self.step * ((n - leaving) // self.step + 1), 0)


class Selection:
    """The free groups in the order in which they leave.

    Args:
        found: the dependencies of a model.
        scores: of all groups; infinite for those that stay.
        multiple: number of channels that layers are left with a multiple of.
        limits: path or pattern of layers -> largest share of channels to remove.
        max_share: the same for all other layers.

    Raises:
        ConfigError: for limits that match no layer that makes channels.
    """

    def __init__(
        self,
        found: Dependencies,
        scores: np.ndarray,
        *,
        multiple: int,
        limits: Mapping[str, float],
        max_share: float,
    ):
        self._found = found
        shares = _shares(found, limits, max_share)
        members: dict[tuple[str, ...], list[int]] = {}
        width: dict[tuple[str, ...], int] = {}
        for group in found.free:
            if np.isfinite(scores[group.number]):
                key = tuple(sorted(group.made_by))
                members.setdefault(key, []).append(group.number)
                channels = max(len(v) for v in group.made_by.values())
                width[key] = max(width.get(key, 1), channels)
        self.blocks = []
        for key, groups in members.items():
            ranked = np.array(groups)[np.argsort(scores[groups], kind="stable")]
            step = multiple // math.gcd(multiple, width[key])
            if set(key) <= found.survey.heads:
                step = 1
            most = math.floor(len(groups) * min(shares[path] for path in key) + 1e-9)
            self.blocks.append(Block(ranked, step, most))
        owner = np.full(found.count, -1)
        for number, block in enumerate(self.blocks):
            owner[block.groups] = number
        free = np.flatnonzero(owner >= 0)
        self._order = owner[free[np.argsort(scores[free], kind="stable")]]
        self._scores = scores

    def __len__(self) -> int:
        return len(self._order)

    def leaving(self, count: int) -> list[int]:
        """How many leave each block when the least important groups do, rounded."""
        wanted = np.bincount(self._order[:count], minlength=len(self.blocks))
        pairs = zip(self.blocks, wanted, strict=True)
        return [block.rounded(int(number)) for block, number in pairs]

    def gone(self, leaving: list[int]) -> np.ndarray:
        """For each group whether it leaves, if so many leave each block."""
        gone = np.zeros(self._found.count, bool)
        for block, number in zip(self.blocks, leaving, strict=True):
            gone[block.groups[:number]] = True
        while (empty := self._found.emptied(gone)) is not None:
            labels = empty[1]
            gone[labels[np.argmax(self._scores[labels])]] = False
        return gone

    def meeting(
        self,
        cost: Callable[[np.ndarray], float],
        target: float,
        name: str,
        *,
        cheap: bool = True,
    ) -> np.ndarray:
        """A small removal whose cost is at most the target.

        Args:
            cost: what is left costs, as a function of what leaves.
            target: the cost to get down to.
            name: of the cost, for the error.
            cheap: whether the cost can be asked for each block once more.

        Raises:
            ConfigError: if even the largest one costs more.
        """

        def costs(count: int) -> float:
            return cost(self.gone(self.leaving(count)))

        least = costs(len(self))
        if least > target:
            now = cost(np.zeros(self._found.count, bool))
            raise ConfigError(
                f"{name} of at most {target:,.6g} cannot be met: removing all that may "
                f"leave still takes {least:,.6g} of {now:,.6g}. Raise the target, "
                "max_share or limits, or lower multiple."
            )
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if costs(middle) <= target:
                high = middle
            else:
                low = middle + 1
        while costs(low) > target:  # rounding may go up and down
            low += 1
        leaving = self.leaving(low)
        return self.gone(self._given_back(leaving, cost, target) if cheap else leaving)

    def _given_back(
        self,
        leaving: list[int],
        cost: Callable[[np.ndarray], float],
        target: float,
    ) -> list[int]:
        """Without what rounding took beyond the target, the most important first."""

        def last(number: int) -> float:
            return self._scores[self.blocks[number].groups[leaving[number] - 1]]

        open_ = [i for i, count in enumerate(leaving) if count]
        while open_:
            number = max(open_, key=last)
            fewer = self.blocks[number].fewer(leaving[number])
            trial = [*leaving[:number], fewer, *leaving[number + 1 :]]
            if cost(self.gone(trial)) > target:
                open_.remove(number)
                continue
            leaving = trial
            if not fewer:
                open_.remove(number)
        return leaving


def _shares(
    found: Dependencies, limits: Mapping[str, float], max_share: float
) -> dict[str, float]:
    """Path of each layer that makes channels -> the share that may leave."""
    paths = list(found.survey.made)
    shares: dict[str, float] = dict.fromkeys(paths, max_share)
    for pattern, share in limits.items():
        checks.number(share, name=f"limits[{pattern!r}]", least=0, most=1)
        hits = [path for path in paths if fnmatch.fnmatchcase(path, pattern)]
        if not hits:
            raise ConfigError(
                f"limits: {pattern!r} matches no layer that makes channels. "
                f"{checks.nearest(pattern, paths)}".rstrip()
            )
        shares |= dict.fromkeys(hits, float(share))
    return shares


def absolute(value: Any, whole: float, name: str) -> float:
    """A target as a number: below 1 it is a share of the whole."""
    number = checks.number(value, name=name, above=0)
    return number * whole if number < 1 else number
