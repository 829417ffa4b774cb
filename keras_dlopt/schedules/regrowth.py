"""Sparsity schedules with a rule of their own: once, exchange, rewind."""

import math
from typing import Literal

import keras
import numpy as np
from keras import ops

from keras_dlopt.errors import ConfigError
from keras_dlopt.schedules.base import Schedule
from keras_dlopt.schedules.parts import check_steps
from keras_dlopt.schedules.sparsity import (
    check_range,
    check_sparsity,
    next_on_grid,
)


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
        self.at = check_steps(at, name="at", minimum=0)

    @property
    def end(self) -> int:
        """The step of the last change."""
        return self.at

    def __call__(self, step):
        return ops.where(ops.cast(step, "float32") >= self.at, self.sparsity, 0.0)

    def value(self, step: int) -> float:
        """The sparsity at `step`, in float64."""
        return self.sparsity if step >= self.at else 0.0

    def next_due(self, step: int) -> int | None:
        """`at`, once."""
        return self.at if step < self.at else None

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {"sparsity": self.sparsity, "at": self.at}


@keras.saving.register_keras_serializable("keras_dlopt")
class RegrowSparsity(Schedule):
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
        check_range(begin, end, frequency)
        if not isinstance(fraction, int | float) or not 0 < fraction < 1:
            raise ConfigError(
                "fraction must be a share of the kept weights, in (0, 1). "
                f"Received: fraction={fraction!r}."
            )
        if grow not in ("gradient", "random"):
            raise ConfigError(f"grow must be 'gradient' or 'random'. Received: {grow}.")
        self.begin, self.end, self.frequency = begin, end, frequency
        self.fraction, self.grow, self.seed = float(fraction), grow, seed

    def exchanged(self, step: int) -> float:
        """The share of the kept weights that is exchanged at `step`."""
        progress = (step - self.begin) / max(self.end - self.begin, 1)
        wave = 1 + math.cos(math.pi * float(np.clip(progress, 0, 1)))
        return self.fraction / 2 * wave

    def __call__(self, step):
        return ops.where(ops.cast(step, "float32") >= self.begin, self.sparsity, 0.0)

    def value(self, step: int) -> float:
        """The sparsity at `step`, in float64."""
        return self.sparsity if step >= self.begin else 0.0

    def next_due(self, step: int) -> int | None:
        """The next step at which weights are exchanged."""
        return next_on_grid(step, self.begin, self.end, self.frequency)

    def remaining(self, step: int) -> str | None:
        """What is still to come after `step`."""
        if step >= self.end or self.next_due(step) is None:
            return None
        return f"pruned weights are exchanged until step {self.end}"

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            "sparsity": self.sparsity,
            "end": self.end,
            "begin": self.begin,
            "frequency": self.frequency,
            "fraction": self.fraction,
            "grow": self.grow,
            "seed": self.seed,
        }


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
        self.begin = check_steps(begin, name="begin", minimum=0)

    @property
    def end(self) -> int:
        """The step of the last round's pruning."""
        return self.begin + self.rounds * self.every

    def round(self, step: int) -> int:
        """How many rounds are over at `step`."""
        return min(max((step - self.begin) // self.every, 0), self.rounds)

    def __call__(self, step):
        step = ops.cast(step, "float32")
        done = ops.clip(ops.floor((step - self.begin) / self.every), 0, self.rounds)
        return 1.0 - ops.power(1.0 - self.sparsity, done / self.rounds)

    def value(self, step: int) -> float:
        """The sparsity at `step`, in float64."""
        return 1 - (1 - self.sparsity) ** (self.round(step) / self.rounds)

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

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            "sparsity": self.sparsity,
            "rounds": self.rounds,
            "every": self.every,
            "begin": self.begin,
        }
