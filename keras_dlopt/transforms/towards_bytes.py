"""What steers a training to a number of bytes: the price of a bit in the loss."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from keras_dlopt import checks
from keras_dlopt.schedules.parts import check_steps
from keras_dlopt.transforms.base import State, Transform

PRICES = (1e-9, 1e-1)  # of a bit, in units of the loss


class TowardsBytes(Transform):
    """Base of transforms whose weights are to take a number of bytes at the end.

    All weights of a recipe entry share the state of the steering: the price of a bit,
    the bytes at the start, and the logarithm of the last size over its goal.

    Attributes:
        fallen: share of the training after which the goal stays.
        start: price at the first count.
    """

    fallen: ClassVar[float]
    start: ClassVar[float]

    def __init__(self, goal: int, *, end: int, begin: int, frequency: int):
        self.goal = checks.count(goal, name="goal", hint="Bytes in the file.")
        self.begin = check_steps(begin, name="begin", least=0)
        self.end = check_steps(end, name="end")
        self.frequency = check_steps(frequency, name="frequency")
        checks.ordered(begin=self.begin, end=self.end, strict=True)

    def progress(self, step: int) -> float:
        """Share of the training that is done, from 0 to 1."""
        return min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)

    def goal_at(self, progress: float, *, first: float) -> float:
        """Bytes to be reached at a share of the training that began with `first`."""
        left = max(0.0, 1 - progress / self.fallen)
        return float(self.goal * (first / self.goal) ** left)

    def shared(self) -> dict[str, State]:
        """The state of the steering at the start."""
        names = ("price", "first", "above")
        return {name: State(np.array(0.0, "float32")) for name in names}

    def steer(
        self, state: Mapping[str, Any], size: float, done: float, *, until: float
    ) -> dict[str, np.ndarray]:
        """The state of the steering after a count.

        Args:
            state: of any weight of the entry.
            size: bytes of all weights.
            done: share of the training.
            until: share from which on the price stays.
        """
        first = float(state["first"]) or size
        price, above = float(state["price"]), 0.0
        if done <= until:
            above = float(np.log(max(size, 1.0) / self.goal_at(done, first=first)))
            nearer = float(state["above"]) - above
            # Few counts go faster.
            fastest = max(0.1, 20 * self.frequency / (self.end - self.begin))
            price = steered(price or self.start, above, nearer, fastest)
        new = {"price": price, "first": first, "above": above}
        return {name: np.array(one, "float32") for name, one in new.items()}

    def next_due(self, step):
        if step >= self.end:
            return None
        return self.begin if step < self.begin else min(step + self.frequency, self.end)

    def remaining(self, step):
        if step >= self.end:
            return None
        return (
            f"{type(self).__name__} is {self.progress(step):.0%} on its way, until "
            f"step {self.end}"
        )


def steered(
    price: float, above: float, nearer: float = 0.0, fastest: float = 0.1
) -> float:
    """A price that goes up while the codes are above their goal, and down below.

    Args:
        price: the present one.
        above: logarithm of the codes over their goal.
        nearer: how much nearer it came since the last count. What falls already needs
            no higher price: without this a network is priced to death.
        fastest: the largest change of the price's logarithm.
    """
    change = np.exp(np.clip(0.5 * above - 5.0 * nearer, -fastest, fastest))
    return float(np.clip(price * change, *PRICES))
