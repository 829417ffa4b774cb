"""Pruning under TFMOT's names."""

import abc
import contextlib
import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import checks
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.interop.tfmot.wrapping import WEIGHTS, wrap
from keras_dlopt.schedules import Schedule
from keras_dlopt.schedules.parts import check_sparsity
from keras_dlopt.select import Selector, at
from keras_dlopt.transforms import Prune, Recipe, UpdateTransforms, finalize
from keras_dlopt.transforms.prune.pattern import Blocks, NofM, Pattern, Unstructured

_POOLING = {"AVG": "mean", "MAX": "max"}


def _checked_steps(
    begin: Any, end: Any, frequency: Any, *, endless: bool
) -> tuple[int, int, int]:
    """begin_step, end_step and frequency as ints, or `ConfigError`."""
    begin = checks.whole(begin, name="begin_step", least=0, hint="It is a step.")
    end = checks.whole(
        end,
        name="end_step",
        least=-1 if endless else begin,
        hint=f"It is begin_step={begin} or later{'; -1 is no end' if endless else ''}.",
    )
    if -1 < end < begin:
        raise ConfigError(
            f"end_step must be {begin} (begin_step) or later, or -1 for no end. "
            f"Received: {end}."
        )
    return begin, end, checks.count(frequency, name="frequency", hint="Of steps.")


class _TfmotSchedule(Schedule):
    """Updates at begin_step, begin_step + frequency, ... until end_step.

    TFMOT counts batches from 1, so its step s is the one before which s - 1 are done,
    which is how steps are counted here, and its step 0 never comes.
    """

    begin_step: int
    end_step: int
    frequency: int

    @property
    def end(self) -> int | None:
        """The last step at which an update can be; None for no end."""
        if self.end_step < 0:
            return None
        turns = (self.end_step - self.begin_step) // self.frequency
        return self.begin_step + turns * self.frequency - 1

    def next_due(self, step: int) -> int | None:
        """The next step at which the mask is chosen anew."""
        turns = max((step + 1 - self.begin_step) // self.frequency + 1, 0)
        due = self.begin_step + turns * self.frequency - 1
        return due if self.end is None or due <= self.end else None


@keras.saving.register_keras_serializable("keras_dlopt")
class PolynomialDecay(_TfmotSchedule):
    """`tfmot.sparsity.keras.PolynomialDecay`, computed in float32 as there.

    Unlike `schedules.PolynomialSparsity`, `end_step` itself is an update only if it
    lies on the grid of `frequency`; else the final sparsity is never quite reached.

    Args:
        initial_sparsity: share of zeros at `begin_step`, in [0, 1).
        final_sparsity: share of zeros at `end_step`, in [0, 1).
        begin_step: first step at which weights are removed.
        end_step: last step at which weights may be removed.
        power: exponent of the polynomial.
        frequency: steps between two updates.

    Raises:
        ConfigError: for numbers out of range.

    Example:
        >>> PolynomialDecay(0.0, 0.5, begin_step=0, end_step=100).value(99)
        0.5
    """

    def __init__(
        self,
        initial_sparsity: float,
        final_sparsity: float,
        begin_step: int,
        end_step: int,
        power: float = 3,
        frequency: int = 100,
    ):
        self.initial_sparsity = check_sparsity(
            initial_sparsity, name="initial_sparsity"
        )
        self.final_sparsity = check_sparsity(final_sparsity, name="final_sparsity")
        self.begin_step, self.end_step, self.frequency = _checked_steps(
            begin_step, end_step, frequency, endless=False
        )
        self.power = checks.number(power, name="power", hint="It is an exponent.")

    def __call__(self, step):
        length = max(self.end_step - self.begin_step, 1)
        step = ops.cast(step, "float32") + 1.0
        progress = ops.clip((step - self.begin_step) / length, 0.0, 1.0)
        fall = self.initial_sparsity - self.final_sparsity
        value = fall * ops.power(1.0 - progress, self.power) + self.final_sparsity
        return ops.where(step >= max(self.begin_step, 1), value, 0.0)

    def value(self, step: int) -> float:
        """The sparsity after `step` batches, rounded as TFMOT rounds it."""
        step += 1
        if step < max(self.begin_step, 1):
            return 0.0
        one = np.float32(1)
        length = np.float32(max(self.end_step - self.begin_step, 1))
        progress = min(
            one, max(np.float32(0), np.float32(step - self.begin_step) / length)
        )
        fall = np.float32(self.initial_sparsity - self.final_sparsity)
        rest = np.power(one - progress, np.float32(self.power))
        return float(fall * rest + np.float32(self.final_sparsity))


# `schedules.ConstantSparsity` has the plain name.
@keras.saving.register_keras_serializable("keras_dlopt", name="tfmot_ConstantSparsity")
class ConstantSparsity(_TfmotSchedule):
    """`tfmot.sparsity.keras.ConstantSparsity`.

    Args:
        target_sparsity: share of zeros, in [0, 1).
        begin_step: first step at which weights are removed.
        end_step: last step at which the mask may be chosen anew; -1 for no end.
        frequency: steps between two updates.

    Raises:
        ConfigError: for numbers out of range.

    Example:
        >>> schedule = ConstantSparsity(0.5, begin_step=10)
        >>> schedule.next_due(-1), schedule.next_due(9)
        (9, 109)
    """

    def __init__(
        self,
        target_sparsity: float,
        begin_step: int,
        end_step: int = -1,
        frequency: int = 100,
    ):
        self.target_sparsity = check_sparsity(target_sparsity, name="target_sparsity")
        self.begin_step, self.end_step, self.frequency = _checked_steps(
            begin_step, end_step, frequency, endless=True
        )

    def __call__(self, step):
        step = ops.cast(step, "float32") + 1.0
        first = max(self.begin_step, 1)
        return ops.where(step >= first, self.target_sparsity, 0.0)

    def value(self, step: int) -> float:
        """The sparsity after `step` batches."""
        return self.target_sparsity if step + 1 >= max(self.begin_step, 1) else 0.0


class PruningPolicy(abc.ABC):
    """`tfmot.sparsity.keras.PruningPolicy`: which layers of a model are pruned."""

    @abc.abstractmethod
    def allow_pruning(self, layer: keras.layers.Layer) -> bool:
        """Whether this layer is pruned."""

    @abc.abstractmethod
    def ensure_model_supports_pruning(self, model: keras.Model) -> None:
        """Raises for a model that the policy cannot judge."""


class PrunableLayer(abc.ABC):
    """`tfmot.sparsity.keras.PrunableLayer`: a layer that says what to prune in it.

    Subclass it together with a Keras layer.
    """

    @abc.abstractmethod
    def get_prunable_weights(self) -> list[Any]:
        """The weights of the built layer that are pruned."""


def prune_low_magnitude(
    to_prune: Any,
    pruning_schedule: Schedule | None = None,
    block_size: tuple[int, int] = (1, 1),
    block_pooling_type: str = "AVG",
    pruning_policy: Any = None,
    sparsity_m_by_n: tuple[int, int] | None = None,
    **kwargs: Any,
) -> Any:
    """`tfmot.sparsity.keras.prune_low_magnitude`.

    Prunes the kernels of every layer but depthwise convolutions, and embeddings; of a
    `PrunableLayer` what it says, once it is built. The
    masks are those of TFMOT, ties and rounding included; removed weights get no
    gradient, where TFMOT lets one step's gradient into them before it zeroes them.

    Args:
        to_prune: a built model of any kind, a layer, or a list of layers.
        pruning_schedule: `PolynomialDecay`, `ConstantSparsity` or any sparsity
            schedule; None for `ConstantSparsity(0.5, 0)`.
        block_size: (height, width) of blocks in rank-2 weights.
        block_pooling_type: `"AVG"` or `"MAX"`.
        pruning_policy: an object whose `allow_pruning(layer)` says which layers of a
            model are pruned; None for all.
        sparsity_m_by_n: (m, n): m zeros among every n weights, such as (2, 4).
        **kwargs: of the new layer.

    Returns:
        A `TransformedModel`, a `TransformedLayer`, or a list of them. The model is a
        copy: the original keeps its weights.

    Raises:
        ConfigError: for what cannot be pruned, and for arguments out of range.

    Example:
        >>> layer = prune_low_magnitude(keras.layers.Dense(4), ConstantSparsity(0.5, 0))
        >>> type(layer).__name__
        'TransformedLayer'
    """
    schedule = pruning_schedule or ConstantSparsity(0.5, 0)
    pair = functools.partial(checks.several, check=checks.whole, length=2)
    pattern = _pattern(
        pair(block_size, name="block_size"),
        block_pooling_type,
        checks.optional(pair, sparsity_m_by_n, name="sparsity_m_by_n"),
    )
    selector = _chosen(to_prune)
    if pruning_policy is not None:
        selector = selector & _allowed(to_prune, pruning_policy)
    prune = Prune(schedule, pattern=pattern)
    if sparsity_m_by_n is not None:
        prune = Prune(pattern=pattern)  # TFMOT does it once, at the start
    recipe = Recipe([(selector, prune)])
    return wrap(to_prune, lambda _: recipe, function="prune_low_magnitude", **kwargs)


def _chosen(to_prune: Any) -> Selector:
    """TFMOT's weights, but what each `PrunableLayer` says of itself."""
    if isinstance(to_prune, PrunableLayer) and not getattr(to_prune, "built", False):
        raise ConfigError(
            f"What {type(to_prune).__name__} has to prune is known once it is built. "
            "Build it, or prune the model that it is in."
        )
    if not isinstance(to_prune, keras.layers.Layer) or not to_prune.built:
        return WEIGHTS
    targets = weight_targets(to_prune)
    own = [t for t in targets if isinstance(t.layer, PrunableLayer)]
    named = [
        t.path
        for t in own
        if any(v is t.variable for v in t.layer.get_prunable_weights())
    ]
    rest = WEIGHTS & ~at(*(t.path for t in own)) if own else WEIGHTS
    return rest | at(*named) if named else rest


def _pattern(block_size, pooling, m_by_n) -> Pattern:
    if m_by_n is not None:
        if block_size != (1, 1):
            raise ConfigError(
                "block_size and sparsity_m_by_n are two patterns for the same weights. "
                f"Received: block_size={block_size}, sparsity_m_by_n={m_by_n}. Give "
                "one of them."
            )
        zeros, group = m_by_n
        return NofM(group - zeros, group)
    if block_size == (1, 1):
        return Unstructured(ties="keep")
    checks.choice(pooling, name="block_pooling_type", choices=tuple(_POOLING))
    return Blocks(block_size, _POOLING[pooling])  # type: ignore[arg-type]


def _allowed(model: Any, policy: Any) -> Selector:
    if not isinstance(model, keras.Model):
        raise ConfigError(
            "A pruning_policy chooses among the layers of a model. Received: "
            f"{model!r}. Wrap only the layers that are to be pruned instead."
        )
    if not hasattr(policy, "allow_pruning"):
        raise ConfigError(
            "pruning_policy must be an object with the methods allow_pruning(layer) "
            f"and ensure_model_supports_pruning(model). Received: {policy!r}."
        )
    policy.ensure_model_supports_pruning(model)
    targets = weight_targets(model)
    return at(*(t.path for t in targets if policy.allow_pruning(t.layer)))


@keras.saving.register_keras_serializable("keras_dlopt")
class UpdatePruningStep(UpdateTransforms):
    """`tfmot.sparsity.keras.UpdatePruningStep`.

    `fit` of a transformed model runs its updates by itself, so there the callback may
    stay or go; a model built from `prune_low_magnitude(layer)` needs it.

    Args:
        data: as for `UpdateTransforms`; pruning by magnitude needs none.
        batches: as there.
        batch_size: as there.
        seed: as there.

    Example:
        >>> callbacks = [UpdatePruningStep()]
    """


def strip_pruning(model: keras.Model) -> keras.Model:
    """`tfmot.sparsity.keras.strip_pruning`: a plain model with the zeros in it."""
    return finalize(model)


def prune_scope() -> contextlib.AbstractContextManager:
    """`tfmot.sparsity.keras.prune_scope`: not needed, files load without it."""
    return contextlib.nullcontext()
