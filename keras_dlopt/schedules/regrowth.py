"""Sparsity schedules with a rule of their own: once, exchange, rewind."""

from typing import Any, Literal

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.schedules.base import Schedule, descent, next_on_grid
from keras_dlopt.schedules.parts import check_sparsity, check_steps
from keras_dlopt.schedules.sparsity import SparsitySchedule


@keras.saving.register_keras_serializable("keras_dlopt")
class OneShotSparsity(Schedule):
    """Nothing, and from step `at` on the full sparsity; the mask is chosen once.

    Args:
        sparsity: share of the weights set to zero, in [0, 1).
        at: step at which they are removed.

    Raises:
        ConfigError: for a sparsity outside [0, 1) or a negative step.

    Example:
        >>> [OneShotSparsity(0.5, at=10).value(t) for t in (9, 10)]
        [0.0, 0.5]
    """

    def __init__(self, sparsity: float, *, at: int = 0):
        self.sparsity = check_sparsity(sparsity)
        self.at = check_steps(at, name="at", least=0)

    @property
    def end(self) -> int:
        """The step of the last change."""
        return self.at

    def formula(self, step: Any, xp: Any) -> Any:
        return xp.where(step >= self.at, self.sparsity, 0.0)

    def next_due(self, step: int) -> int | None:
        """`at`, once."""
        return self.at if step < self.at else None


@keras.saving.register_keras_serializable("keras_dlopt")
class RegrowSparsity(SparsitySchedule):
    r"""A constant sparsity whose mask wanders: some weights go, as many come back.

    At `begin` the first mask is chosen by `Prune`'s score. At every later update each
    weight tensor drops the share f of its kept weights that has the smallest magnitude,
    and takes as many of the removed ones back, which start at zero:

        f(step) = fraction / 2 * (1 + cos(pi * (step - begin) / (end - begin)))

    Args:
        sparsity: share of zeros, in (0, 1).
        end: step at which the exchange ends.
        begin: step of the first mask; 0 trains sparsely from the start.
        frequency: steps between two exchanges.
        fraction: share of the kept weights exchanged at first, in (0, 1).
        grow: which come back: `"gradient"`, those whose gradient is the largest, or
            `"random"`.
        seed: for `"random"`.

    Raises:
        ConfigError: for values outside of these ranges or steps out of order.

    Example:
        >>> schedule = RegrowSparsity(0.9, end=1000)
        >>> [schedule.exchanged(t) for t in (0, 500, 1000)]
        [0.3, 0.15, 0.0]

    Source: Evci et al., "Rigging the Lottery" (arXiv:1911.11134), algorithm 1;
    `"random"` is Mocanu et al., "Scalable training of artificial neural networks with
    adaptive sparse connectivity" (arXiv:1707.04780).
    Differs from the paper: optimizer slots of the weights that come back are kept, not
    reset.
    """

    end: int

    def __init__(
        self,
        sparsity: float,
        *,
        end: int,
        begin: int = 0,
        frequency: int = 100,
        fraction: float = 0.3,
        grow: Literal["gradient", "random"] = "gradient",
        seed: int = 0,
    ):
        self.sparsity = check_sparsity(sparsity)
        self._set_steps(begin, check_steps(end, name="end", least=0), frequency)
        self.fraction = checks.fraction(
            fraction,
            name="fraction",
            hint="It is the share of the kept weights that is exchanged at first.",
        )
        self.grow = checks.choice(grow, name="grow", choices=("gradient", "random"))
        self.seed = checks.seed(seed)

    def exchanged(self, step: int) -> float:
        """The share of the kept weights that is exchanged at `step`."""
        progress = (step - self.begin) / max(self.end - self.begin, 1)
        progress = float(np.clip(progress, 0, 1))
        return float(self.fraction * descent(progress, "cosine", np))

    def remaining(self, step: int) -> str | None:
        """What is still to come after `step`."""
        if step >= self.end or self.next_due(step) is None:
            return None
        return f"pruned weights are exchanged until step {self.end}"


@keras.saving.register_keras_serializable("keras_dlopt")
class LotterySparsity(Schedule):
    r"""Rounds of training, pruning and rewinding the weights to an early value.

    The weights are saved at step `begin`. At begin + r * every, for r = 1 .. rounds,
    the lowest of the remaining weights are removed, the same share in every round,

        s_r = 1 - (1 - sparsity)^(r / rounds),

    and the others go back to their saved values. Train for another `every` steps after
    the last round. Only the weights that `Prune` selects go back; to rewind biases and
    normalization too, give them an entry with sparsity 0 and the same rounds.

    Args:
        sparsity: final share of zeros, in [0, 1).
        rounds: how many times weights are removed.
        every: training steps of a round.
        begin: step whose weights are saved; 0 is the original lottery ticket, some
            hundred steps are needed for deep networks.

    Raises:
        ConfigError: for a sparsity outside [0, 1), or numbers that are too small.

    Example:
        >>> schedule = LotterySparsity(0.75, rounds=2, every=100, begin=10)
        >>> [schedule.value(t) for t in (10, 110, 210)]
        [0.0, 0.5, 0.75]

    Source: Frankle and Carbin, "The Lottery Ticket Hypothesis" (arXiv:1803.03635),
    section 2 and appendix B; rewinding to step k from Frankle et al.
    (arXiv:1903.01611), section 3.
    Differs from the paper: optimizer state and learning rate go on. Give the optimizer
    a schedule with the period `every`, such as `CosineRestarts`.
    """

    def __init__(self, sparsity: float, *, rounds: int, every: int, begin: int = 0):
        self.sparsity = check_sparsity(sparsity)
        self.rounds = check_steps(rounds, name="rounds", unit="rounds of training")
        self.every = check_steps(every, name="every")
        self.begin = check_steps(begin, name="begin", least=0)

    @property
    def end(self) -> int:
        """The step of the last round's pruning."""
        return self.begin + self.rounds * self.every

    def round(self, step: int) -> int:
        """How many rounds are over at `step`."""
        return min(max((step - self.begin) // self.every, 0), self.rounds)

    def formula(self, step: Any, xp: Any) -> Any:
        done = xp.clip(xp.floor((step - self.begin) / self.every), 0, self.rounds)
        return 1.0 - (1.0 - self.sparsity) ** (done / self.rounds)

    def next_due(self, step: int) -> int | None:
        """The next step at which weights are saved, or removed and rewound."""
        return next_on_grid(step, self.begin, self.end, self.every)

    def remaining(self, step: int) -> str | None:
        """What is still to come after `step`."""
        done = self.round(step)
        if done == self.rounds:
            return None
        return (
            f"round {done} of {self.rounds} is over, at sparsity "
            f"{self.value(step):.3g} of {self.sparsity:.3g}, due at step {self.end}"
        )
