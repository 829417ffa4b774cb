"""A learning rate that follows the training loss."""

import math
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.callbacks.base import InGraphCallback
from keras_dlopt.callbacks.controller import Controller, Seen
from keras_dlopt.callbacks.in_graph import hub_of
from keras_dlopt.callbacks.noise import SILENCE, Noise, listen
from keras_dlopt.errors import ConfigError
from keras_dlopt.runtime import to_numpy
from keras_dlopt.schedules.parts import check_steps


class LossState(NamedTuple):
    """What the rule remembers from step to step; scalars, all float32.

    Attributes:
        step: steps done.
        mean: exponential mean of the loss, not yet corrected for its start at 0.
        weight: sum of the weights in `mean`.
        reference: smoothed loss that the next verdict compares with.
        wait: steps since the last verdict; negative in the cooldown.
        climbing: 1 in the warm-up, 0 after it.
        best: rate at the lowest smoothed loss of the warm-up.
        highest: highest smoothed loss of the warm-up.
        total: steps that the whole fit will do; 0 if unknown.
        noise: how much the losses of successive batches differ.
    """

    step: Any
    mean: Any
    weight: Any
    reference: Any
    wait: Any
    climbing: Any
    best: Any
    highest: Any
    total: Any
    noise: Noise


START = LossState(0.0, 0.0, 0.0, math.inf, 0.0, 1.0, 0.0, -math.inf, 0.0, SILENCE)
# What a mean of independent losses may differ by, in mean differences between two.
NOISES = 3.0
# A short fit is sped up by no more than this, or noise would decide.
LEAST_SCALE = 0.2


class Rule(NamedTuple):
    """The constants of `loss_driven_rule`, as in `LossDrivenLearningRate`."""

    climb: float
    backoff: float
    tolerance: float
    overshoot: float
    smoothing: int
    up: float
    down: float
    patience: int
    cooldown: int
    horizon: int
    min_rate: float
    max_rate: float
    anneal: float
    final: float


def loss_driven_rule(state: LossState, loss, rate, rule: Rule) -> tuple[LossState, Any]:
    """One step of `LossDrivenLearningRate`.

    Args:
        state: what was remembered.
        loss: mean loss of the batch.
        rate: learning rate that the batch was trained with.
        rule: the constants.

    Returns:
        The next state and the factor from this step's rate to the next one's.
    """
    scale = _scale(state.total, rule)
    over = ops.maximum(rule.smoothing * scale, 1.0)
    finite = ops.isfinite(loss)
    bad = ops.logical_not(finite)
    mean, weight, noise = _statistics(state, loss, finite, over)
    smooth = mean / ops.maximum(weight, 1e-30)
    climbing = state.climbing > 0.5
    early = state.step < over

    raised = rate * rule.climb ** (1.0 / scale)
    lower = ops.logical_and(finite, ops.logical_or(early, smooth <= state.reference))
    best = ops.where(ops.logical_and(climbing, lower), rate, state.best)
    some = weight > 0.0
    highest = ops.where(some, ops.maximum(state.highest, smooth), state.highest)
    fall = ops.where(some, highest - ops.minimum(state.reference, smooth), 0.0)
    swing = NOISES * noise.level() / ops.sqrt(2.0 * over - 1.0)
    margin = rule.tolerance * fall + swing
    worse = ops.logical_and(ops.logical_not(early), smooth > state.reference + margin)
    past = ops.logical_and(smooth < highest - margin, raised > best * rule.overshoot)
    ends = ops.logical_or(ops.logical_or(bad, worse), raised >= rule.max_rate)
    stops = ops.logical_and(climbing, ops.logical_or(ends, past))

    waited = state.wait + 1.0
    due = waited >= ops.maximum(ops.round(rule.patience * scale), 1.0)
    due = ops.logical_and(ops.logical_not(climbing), due)
    up = ops.logical_and(due, smooth <= state.reference)
    down = ops.logical_or(
        ops.logical_and(due, ops.logical_not(up)),
        ops.logical_and(bad, ops.logical_not(climbing)),
    )

    new = ops.where(climbing, raised, rate)
    new = ops.where(stops, rule.backoff * ops.where(best > 0.0, best, rate), new)
    new = ops.where(up, rate * rule.up, new)
    new = ops.where(down, rate * rule.down, new)
    new = ops.clip(new, rule.min_rate, rule.max_rate)
    settled = _annealing(state.step + 1.0, state.total, rule)
    new = ops.where(settled, ops.where(bad, rate * rule.down, rate), new)
    factor = new / rate * _anneal_factor(state.step + 1.0, state.total, rule)

    lowest = ops.where(early, smooth, ops.minimum(smooth, state.reference))
    reference = ops.where(climbing, lowest, state.reference)
    reference = ops.where(ops.logical_or(stops, due), smooth, reference)
    wait = ops.where(ops.logical_or(climbing, up), 0.0, waited)
    rest = -ops.round(rule.cooldown * scale)
    wait = ops.where(ops.logical_or(stops, down), rest, wait)
    return (
        LossState(
            step=state.step + 1.0,
            mean=mean,
            weight=weight,
            reference=ops.where(weight > 0.0, reference, math.inf),
            wait=wait,
            climbing=ops.where(stops, 0.0, state.climbing),
            best=best,
            highest=highest,
            total=state.total,
            noise=noise,
        ),
        factor,
    )


def _statistics(state: LossState, loss, finite, over) -> tuple[Any, Any, Noise]:
    """The running mean, its weight and the noise with one more loss."""
    beta = 1.0 - 1.0 / over
    mean = ops.where(finite, beta * state.mean + (1 - beta) * loss, state.mean)
    weight = ops.where(finite, beta * state.weight + (1 - beta), state.weight)
    first = state.weight <= 0.0
    noise = listen(state.noise, loss, finite=finite, first=first, steps=over)
    return mean, weight, noise


def _scale(total, rule: Rule):
    """By how much a fit shorter than the horizon compresses the rule's times."""
    share = ops.minimum(ops.maximum(total / rule.horizon, LEAST_SCALE), 1.0)
    return ops.where(total > 0.0, share, 1.0)


def _annealing(step, total, rule: Rule):
    begin = total * (1.0 - rule.anneal)
    return ops.logical_and(total > 0.0, step > begin)


def _anneal_factor(step, total, rule: Rule):
    """Ratio of the linear descent after `step` to that before it."""
    begin = total * (1.0 - rule.anneal)
    length = ops.maximum(total - begin, 1.0)

    def level(at):
        progress = ops.clip((at - begin) / length, 0.0, 1.0)
        return 1.0 - (1.0 - rule.final) * progress

    return ops.where(total > 0.0, level(step) / level(step - 1.0), 1.0)


class _LossDriven(Controller):
    key = "loss_driven"
    wants_loss = True

    def __init__(self, rule: Rule):
        self.rule = rule

    def initial(self, model):
        # The noise is kept apart: checkpoints from before it was measured still load.
        return [np.asarray(START[:-1], "float32"), np.asarray(SILENCE, "float32")]

    def after_step(self, state, seen: Seen):
        scalars = [state[0][i] for i in range(len(START) - 1)]
        fields = LossState._make([*scalars, Noise(*(state[1][i] for i in range(3)))])
        loss, rate = (ops.cast(x, "float32") for x in (seen.loss, seen.rate))
        fields, factor = loss_driven_rule(fields, loss, rate, self.rule)
        parts = [ops.stack(list(fields[:-1])), ops.stack(list(fields.noise))]
        return parts, factor, None


@keras.saving.register_keras_serializable("keras_dlopt")
class LossDrivenLearningRate(InGraphCallback):
    r"""Raises and lowers the learning rate from the smoothed training loss.

    The loss statistics and the rate live in the compiled train step: the rule sees
    every batch, also with `steps_per_execution > 1`, and nothing goes to the host. The
    rate that the optimizer was compiled with matters only if it is below `start`.

    With loss L_t, smoothed loss s_t = m_t / w_t, b = 1 - 1 / smoothing,
    m_t = b m_{t-1} + (1 - b) L_t, w_t = b w_{t-1} + (1 - b):

    1. Warm-up. The rate begins at `start` and is multiplied by `climb` each step, as in
       a learning-rate range test, until s_t exceeds its lowest value by more than

           margin_t = tolerance (highest s - lowest s) + 3 a_t / sqrt(2 smoothing - 1),

       a loss is not finite, or `max_rate` is reached; a_t is the mean of the sizes
       |L_t - L_{t-1}| over about `smoothing` steps, each counted up to 4 times that
       mean. The first `smoothing` steps count as falling. It also ends when s_t is
       below its highest value by that margin and was lowest at a rate `overshoot`
       times lower: with normalization the loss stays flat while the weights
       already blow up. The rate is then set to `backoff` times the one at the lowest.
    2. Verdicts. Every `patience` steps s_t is compared with its value at the last
       verdict: not higher, the rate is multiplied by `up`; higher, by `down`, and the
       next `cooldown` steps do not count as waiting.
    3. Anneal. Over the last share `anneal` of the steps of `fit` the rate goes down
       linearly to `final` times its value, without verdicts. It is left out when the
       number of steps is unknown.

    When `fit` does fewer steps than `horizon`, times shrink in proportion, by a factor
    of 5 at most: `smoothing`, `patience` and `cooldown` are multiplied by the share
    q = steps / horizon, and `climb` becomes climb^(1 / q).

    Losses are only compared with each other: a constant added to the loss changes
    nothing, so the loss may be negative, as a cosine similarity or a likelihood is.

    A loss that is not finite enters no statistics and lowers the rate by `down` at
    once. Except in the anneal the rate stays within `min_rate` and `max_rate`.

    Args:
        start: rate of the first step, unless the optimizer's is lower.
        climb: factor per step in the warm-up, above 1.
        backoff: share of the best rate of the warm-up to go on with, in (0, 1].
        tolerance: share of its fall so far by which the smoothed loss may exceed its
            lowest in warm-up, beyond the noise.
        overshoot: how far the warm-up may climb past the best rate, a factor above 1.
        smoothing: steps that the smoothed loss averages over, about.
        up: factor after an improvement, 1 or greater.
        down: factor after a worsening, in (0, 1).
        patience: steps between two verdicts.
        cooldown: steps added to the wait after a lowering.
        horizon: steps of a `fit` below which the times above shrink; 1 for never.
        min_rate: lowest rate before the anneal.
        max_rate: highest rate.
        anneal: share of the steps of `fit` in the anneal, in [0, 1).
        final: share of the rate left at the end of the anneal, in (0, 1].

    Raises:
        ConfigError: for arguments out of range, and, when training starts, for an
            optimizer whose rate is a schedule.

    Example:
        >>> callback = LossDrivenLearningRate(patience=50)
        >>> callback.get_config()["patience"]
        50

    Source: the warm-up is Smith's range test (arXiv:1506.01186, section 3.3) made part
    of training; the verdicts are the bold driver (Vogl et al. 1988, section 3) on a
    smoothed mini-batch loss, without taking steps back.
    """

    def __init__(
        self,
        *,
        start: float = 1e-5,
        climb: float = 1.05,
        backoff: float = 0.3,
        tolerance: float = 0.02,
        overshoot: float = 3.0,
        smoothing: int = 20,
        up: float = 1.05,
        down: float = 0.7,
        patience: int = 100,
        cooldown: int = 0,
        horizon: int = 1400,
        min_rate: float = 1e-7,
        max_rate: float = 1.0,
        anneal: float = 0.3,
        final: float = 0.01,
    ):
        self.start = checks.positive(start, name="start")
        self.climb = checks.number(climb, name="climb", above=1)
        self.backoff = checks.share(backoff, name="backoff")
        self.tolerance = checks.number(tolerance, name="tolerance", least=0)
        self.overshoot = checks.number(overshoot, name="overshoot", above=1)
        self.smoothing = check_steps(smoothing, name="smoothing")
        self.up = checks.number(up, name="up", least=1)
        self.down = checks.fraction(down, name="down")
        self.patience = check_steps(patience, name="patience")
        self.cooldown = check_steps(cooldown, name="cooldown", least=0)
        self.horizon = check_steps(horizon, name="horizon")
        self.min_rate = checks.positive(min_rate, name="min_rate")
        self.max_rate = checks.positive(max_rate, name="max_rate")
        checks.ordered(min_rate=self.min_rate, start=self.start, max_rate=self.max_rate)
        self.anneal = checks.decay(anneal, name="anneal")
        self.final = checks.share(final, name="final")
        self._told = False
        super().__init__()

    def make_controller(self) -> Controller:
        """The rule with this callback's constants."""
        config = self.get_config()
        return _LossDriven(Rule(**{name: config[name] for name in Rule._fields}))

    def set_model(self, model):
        super().set_model(model)
        self._told = False
        rate = hub_of(model).rate
        if rate.kind != "variable":
            hub_of(model).detach(self.controller)
            raise ConfigError(
                "LossDrivenLearningRate sets the rate itself and cannot drive an "
                "optimizer whose learning_rate is a schedule. Received: "
                f"{type(rate.schedule).__name__}. Compile with a float "
                "learning_rate, or use ReduceOnPlateau, which works on top of a "
                "schedule."
            )
        rate.set(min(self.start, max(self.current_rate(), self.min_rate)))

    def on_epoch_begin(self, epoch, logs=None):
        if self._told:
            return
        self._told = True  # after BackupAndRestore has loaded the steps done so far
        epochs, steps = self.params.get("epochs"), self.params.get("steps")
        if not epochs or not steps:
            return
        slot = hub_of(self.model).slots(self.controller)[0]
        state = LossState._make([*to_numpy(slot), SILENCE])
        state = state._replace(total=state.step + (epochs - epoch) * steps)
        slot.assign(list(state[:-1]))
