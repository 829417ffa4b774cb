"""Pruning: score x pattern x distribution x schedule."""

import numbers
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.schedules import (
    LotterySparsity,
    OneShotSparsity,
    RegrowSparsity,
    Schedule,
)
from keras_dlopt.schedules.parts import check_sparsity
from keras_dlopt.transforms.base import Member, State, Transform
from keras_dlopt.transforms.prune.distribution import (
    BySensitivity,
    Distribution,
    Uniform,
)
from keras_dlopt.transforms.prune.pattern import NofM, Pattern, Unstructured
from keras_dlopt.transforms.prune.rules import choose, exchange
from keras_dlopt.transforms.prune.score import Magnitude, Movement, Score


@keras.saving.register_keras_serializable("keras_dlopt")
class Prune(Transform):
    """Multiplies a weight by a 0/1 mask that keeps what matters.

        w_new = w * mask,   sparsity = share of zeros in mask

    Four values say which zeros: a **score** for each weight, a **pattern** of weights
    that go together, a **distribution** of the zeros over the weights that the recipe
    entry selects, and a **schedule** of the sparsity over the training steps.

    A number prunes once: when the model is transformed, or, with a score that needs
    gradients, before the first training step. A schedule prunes during training, on
    the steps it names. A removed weight stays removed, so that the set of zeros grows
    with the sparsity, except with `RegrowSparsity`, `Movement` and `regrow=True`.

    State: one float32 a weight for the mask; as much again for `Movement`'s score and
    for the values that `LotterySparsity` saves.

    Args:
        sparsity: share of zeros over all selected weights, in [0, 1), or a schedule of
            it such as `schedules.PolynomialSparsity`. It may be left out where another
            value fixes it: `NofM`, or `BySensitivity` with shares.
        score: `Magnitude()`, `Lamp()`, `Taylor()`, `SNIP()`, `HessianDiagonal()`,
            `Movement()`, `Random()`.
        pattern: `Unstructured()`, `NofM(2, 4)`, `Blocks((4, 1))`, `Rows()`,
            `Columns()`, `Filters()`.
        distribution: `Uniform()`, `Global()`, `ERK()`, `BySensitivity({...})`.
        regrow: lets the gradient pass to removed weights too, as if they were there,
            and judges their hidden values at the next update: they may come back.

    Raises:
        ConfigError: for a sparsity outside [0, 1), and for values that contradict each
            other; the text names them.

    Example:
        >>> Prune(0.9) >> Prune(pattern=NofM(2, 4))
        Prune(sparsity=0.9) >> Prune(sparsity=0.5, pattern=NofM(n=2, m=4))

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural
    Networks" (arXiv:1506.02626), section 3; scheduled as in Zhu and Gupta
    (arXiv:1710.01878); `regrow` as in Guo et al., "Dynamic Network Surgery"
    (arXiv:1608.04493), section 3.
    """

    def __init__(
        self,
        sparsity: float | Schedule | None = None,
        *,
        score: Score = Magnitude(),  # noqa: B008  frozen values, shared safely
        pattern: Pattern = Unstructured(),  # noqa: B008
        distribution: Distribution = Uniform(),  # noqa: B008
        regrow: bool = False,
    ):
        for name, value, kind in (
            ("score", score, Score),
            ("pattern", pattern, Pattern),
            ("distribution", distribution, Distribution),
        ):
            wanted = f"a {kind.__name__}, such as {_EXAMPLES[name]}"
            checks.instance(value, kind, name=name, wanted=wanted)
        self.sparsity = _sparsity(sparsity, pattern, distribution)
        self.score, self.pattern, self.distribution = score, pattern, distribution
        self.regrow = checks.boolean(regrow, name="regrow")
        self._check()

    def _check(self) -> None:
        schedule = self._schedule()
        if isinstance(self.pattern, NofM):
            _check_n_of_m(self.pattern, self.distribution, self.sparsity)
        if isinstance(self.score, Movement) and (
            schedule is None or schedule.value(0) > 0
        ):
            raise ConfigError(
                "Movement() learns its scores during training, so nothing can be "
                "removed at step 0. Give a schedule that starts at 0 or later, such as "
                f"PolynomialSparsity(0.9, end=1000). Received: {self.sparsity!r}."
            )
        if isinstance(schedule, RegrowSparsity) and (
            self.regrow or self.score.judges_removed
        ):
            raise ConfigError(
                "RegrowSparsity brings weights back by a rule of its own, which "
                f"contradicts {'regrow=True' if self.regrow else repr(self.score)}. "
                "Use one of them."
            )

    def _schedule(self) -> Schedule | None:
        """The schedule of the updates; None if everything is known at the start."""
        if isinstance(self.sparsity, Schedule):
            return self.sparsity
        if self.score.statistics:
            return OneShotSparsity(self.sparsity or 0.0)
        return None

    @property
    def statistics(self) -> tuple[str, ...]:  # type: ignore[override]
        """What `update` wants to know beside the weights."""
        names = set(self.score.statistics)
        schedule = self.sparsity
        if isinstance(schedule, RegrowSparsity) and schedule.grow == "gradient":
            names.add("gradient")
        return tuple(sorted(names))

    @property
    def sets_weight(self) -> bool:  # type: ignore[override]
        """Whether updates replace the weight itself."""
        return isinstance(self.sparsity, RegrowSparsity | LotterySparsity)

    def init(self, target, weight):
        return self.init_group([target], [weight])[0]

    def init_group(self, targets, weights):
        for target, weight in zip(targets, weights, strict=True):
            self.pattern.check(target, weight.shape)
        group = [
            Member(t, w, {"mask": np.ones(w.shape, "float32")}, place=place)
            for place, (t, w) in enumerate(zip(targets, weights, strict=True))
        ]
        masks = [m.state["mask"] for m in group]
        if self._schedule() is None and group:
            masks = self._choose(group, self.sparsity)
        states = [
            {"mask": State(mask), **self.score.init(weight)}
            for mask, weight in zip(masks, weights, strict=True)
        ]
        if isinstance(self.sparsity, LotterySparsity):
            for state, weight in zip(states, weights, strict=True):
                state["saved"] = State(weight)
        return states

    def _choose(self, group, sparsity) -> list[np.ndarray]:
        return choose(
            group,
            sparsity,
            score=self.score,
            pattern=self.pattern,
            distribution=self.distribution,
            every=self.regrow,
        )

    def apply(self, weight, state, context):
        mask = state["mask"]
        if "score" in state:
            # Its value is the mask; its gradient is the score's.
            mask = mask + (state["score"] - keras.ops.stop_gradient(state["score"]))
        masked = weight * mask
        if self.regrow and context.training:
            # Adds exactly zero, and the rest of the gradient.
            hidden = weight - keras.ops.stop_gradient(weight)
            return masked + hidden * (1.0 - state["mask"])
        return masked

    def next_due(self, step):
        schedule = self._schedule()
        return None if schedule is None else schedule.next_due(step)

    def update(self, group, step):
        schedule = self._schedule()
        if schedule is None:
            return super().update(group, step)
        if isinstance(schedule, LotterySparsity) and schedule.round(step) == 0:
            return [{"saved": m.weight} for m in group]
        if isinstance(schedule, RegrowSparsity) and _begun(group):
            return [exchange(m, schedule, step, self.pattern) for m in group]
        value = schedule.value(step)
        masks = self._choose(group, None if self.sparsity is None else value)
        changes: list[dict[str, np.ndarray]] = [{"mask": mask} for mask in masks]
        if isinstance(schedule, LotterySparsity):
            for change, member in zip(changes, group, strict=True):
                change["weight"] = member.state["saved"]
        return changes

    def finalize(self, target, weight, state):
        # Not weight * mask: that would leave -0.0, a second zero to the codecs.
        zero = np.zeros((), weight.dtype)
        return np.where(state["mask"] != 0, weight, zero), None

    def remaining(self, step):
        schedule = self._schedule()
        if schedule is None:
            return None
        own = getattr(schedule, "remaining", None)
        if own is not None:
            return own(step)
        now, end = schedule.value(step), getattr(schedule, "end", None)
        if end is None:
            due = schedule.next_due(step)
            end = step if due is None else due
        final = schedule.value(end)
        if final <= now:
            return None
        return f"pruning is at sparsity {now:.3g} of {final:.3g}, due at step {end}"


_EXAMPLES = {
    "score": "Magnitude()",
    "pattern": "NofM(2, 4)",
    "distribution": "Global()",
}


def _begun(group) -> bool:
    """Whether a first mask was chosen."""
    return any((m.state["mask"] == 0).any() for m in group)


def _sparsity(sparsity: Any, pattern: Pattern, distribution: Distribution) -> Any:
    """The checked sparsity; None where the distribution says how many."""
    if sparsity is None:
        if pattern.fixed is not None:
            return pattern.fixed
        if isinstance(distribution, BySensitivity) and distribution.says_how_many:
            return None
    if isinstance(sparsity, Schedule):
        return sparsity
    if isinstance(sparsity, numbers.Real | np.ndarray):
        return check_sparsity(sparsity)  # type: ignore[arg-type]
    raise checks.refused(
        sparsity,
        name="sparsity",
        wanted="a number in [0, 1) or a schedule such as "
        "PolynomialSparsity(0.9, end=1000)",
        hint="Only NofM, and BySensitivity with shares, say by themselves how many "
        "zeros there are.",
    )


def _check_n_of_m(pattern: NofM, distribution: Distribution, sparsity: Any) -> None:
    if not isinstance(distribution, Uniform):
        raise ConfigError(
            f"{pattern!r} keeps {pattern.n} of every {pattern.m} in every weight, "
            f"which contradicts {distribution!r}. Leave the distribution out."
        )
    final = getattr(sparsity, "sparsity", sparsity)
    if isinstance(sparsity, RegrowSparsity):
        raise ConfigError(
            f"{pattern!r} cannot be combined with RegrowSparsity: an exchange would "
            "break the groups. Use Prune(..., regrow=True) with PolynomialSparsity."
        )
    if isinstance(final, float) and abs(final - pattern.fixed) > 1e-6:
        raise ConfigError(
            f"{pattern!r} means a sparsity of {pattern.fixed:g}. Received: "
            f"sparsity={sparsity!r}. Leave the sparsity out, or end the schedule at "
            f"{pattern.fixed:g}."
        )
