"""The optimizer base class: a pure rule per method, everything else here.

A method writes `rule(gradient, weight, slots, lr, step) -> (change, slots)` in ops
and names its slots. This class builds them, runs the rule on every backend, and adds
what all methods share: decay, clipping, accumulation, averaging, per-weight rates.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.optimizers import _options, _replicas, _slab, _step, _updates
from keras_dlopt.optimizers._averages import AverageReader
from keras_dlopt.optimizers._cells import (
    Cell,
    native,
)

# State that belongs to the base class, which no rule sees.
_HIDDEN = ("average", "gradient_accumulator")


class _State:
    """What `build` finds out; a plain object, so that Keras does not track it twice."""

    def __init__(self):
        self.variables: list[Any] = []
        self.slots: dict[str, list[Any]] = {}
        self.accumulators: list[Any] = []
        self.shared: dict[str, Any] = {}
        self.decays: list[bool] = []
        self.multipliers: list[float] = []
        self.slab: _slab.Slab | None = None
        self.excluded: Callable[[Any], bool] = lambda variable: False


class Optimizer(AverageReader, keras.optimizers.Optimizer):
    """Base class of the optimizers of this package.

    Takes every argument of `keras.optimizers.Optimizer` and the ones below. Unlike
    there, clipping acts on the gradient of the whole batch, also under a TensorFlow
    strategy, and accumulation and averaging work under `MirroredStrategy`.

    Args:
        learning_rate: float, schedule, or callable without arguments.
        cautious: leave out the entries of a step that point against the gradient, and
            scale the others up by the share left out (arXiv:2411.16085, algorithm 1).
        centralize: subtract each gradient's mean over the inputs of a unit.
        adaptive_clip: largest ratio of the norm of a unit's gradient to that of its
            weights, about 0.01; None for no limit.
        multipliers: (selector, factor) pairs; the first that matches a weight's path
            scales its learning rate, 0 freezes it.
        decay_on: selector of the weights that `weight_decay` acts on; None for all.
        skip_nonfinite: leave weights and state alone in a step whose gradients hold NaN
            or infinity.
        **options: the arguments of `keras.optimizers.Optimizer`: `weight_decay`
            (decoupled: w <- w - lr * weight_decay * w), `clipnorm`, `global_clipnorm`,
            `clipvalue`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency`,
            `loss_scale_factor`, `gradient_accumulation_steps`, `name`.

    Raises:
        ConfigError: for a negative rate, a selector that matches nothing, and other
            arguments out of range.
    """

    # Whether the rule treats every entry alike, so that weights can be joined.
    elementwise: bool = False
    # Whether one weight's step depends on the others, or needs more than `rule` and
    # state that starts at 0.
    couples_weights: bool = False
    # Whether `rule` and `fused` take a tensor as `beta_1` or `momentum`.
    follows_momentum: bool = False
    # Whether `update_step` of the Keras class below takes sparse gradients.
    takes_sparse: bool = False

    def __init__(
        self,
        learning_rate: Any = 0.001,
        *,
        cautious: bool = False,
        centralize: bool = False,
        adaptive_clip: float | None = None,
        multipliers: Sequence[Any] = (),
        decay_on: Any = None,
        skip_nonfinite: bool = False,
        **options: Any,
    ):
        _options.check_rate(learning_rate)
        if adaptive_clip is not None:
            _options.check_positive(adaptive_clip, name="adaptive_clip")
        super().__init__(learning_rate=learning_rate, **options)
        self.cautious = bool(cautious)
        self.centralize = bool(centralize)
        self.adaptive_clip = adaptive_clip
        self.multipliers = _options.multiplier_pairs(multipliers)
        self.decay_on = _options.selector(decay_on, name="decay_on")
        self.skip_nonfinite = bool(skip_nonfinite)
        self._state = _State()

    # -- what a method writes ---------------------------------------------------------

    @property
    def slot_names(self) -> tuple[str, ...]:
        """State per weight that `build` adds, all of the weight's shape."""
        return ()

    @property
    def fuses_anywhere(self) -> bool:
        """Whether `fused` can step another variable than the weight, scaled by `lr`.

        It must neither read the weight nor let the learning rate into the state.
        """
        return False

    @property
    def fusable(self) -> bool:
        """Whether `fused` may be called in place of `rule` on TensorFlow."""
        return False

    def rule(
        self, gradient: Any, weight: Any, slots: dict[str, Any], lr: Any, step: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The method, without side effects.

        Args:
            gradient: of the weight, after clipping.
            weight: tensor of the same shape.
            slots: the weight's state by name.
            lr: learning rate, a scalar tensor.
            step: number of this update, from 1, a scalar tensor.

        Returns:
            What to subtract from the weight, and the new state.
        """
        raise TypeError(f"{type(self).__name__} must define `rule` or `update`.")

    def fused(
        self, gradient: Any, weight: Any, slots: dict[str, Any], lr: Any, step: Any
    ) -> None:
        """The rule as one TensorFlow kernel on variables; used when `fusable`."""
        raise TypeError(f"{type(self).__name__} is fusable and must define `fused`.")

    # -- building ---------------------------------------------------------------------

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the state for `variables`."""
        if self.built:
            return
        variables = list(variables)
        state = self._state
        state.variables = variables
        state.multipliers = _options.multipliers_of(self.multipliers, variables)
        state.decays = [
            not state.excluded(v) and chosen
            for v, chosen in zip(
                variables, _options.chosen(self.decay_on, variables), strict=True
            )
        ]
        state.slab = self._plan_slab(variables)
        super().build(variables)
        missing = [name for name in self.slot_names if name not in state.slots]
        if missing:
            self.add_optimizer_variables(variables, missing)

    def _plan_slab(self, variables: list[Any]) -> _slab.Slab | None:
        allowed = (
            self.elementwise
            and not self.cautious
            and bool(self.slot_names)
            and _replicas.on_tensorflow()
            and not _replicas.has_strategy()
        )
        if not allowed:
            return None
        eligible = [
            multiplier == 1.0 and not getattr(v, "overwrite_with_gradient", False)
            for v, multiplier in zip(variables, self._state.multipliers, strict=True)
        ]
        return _slab.plan(variables, eligible=eligible)

    def add_optimizer_variables(
        self, trainable_variables: Any, name: Any, initializer: Any = "zeros"
    ) -> Any:
        made = super().add_optimizer_variables(trainable_variables, name, initializer)
        names, lists = ([name], [made]) if isinstance(name, str) else (name, made)
        for slot, variables in zip(names, lists, strict=True):
            self._state.slots[slot] = list(variables)
        return made

    def add_variable_from_reference(
        self, reference_variable: Any, name: Any = None, initializer: Any = "zeros"
    ) -> Any:
        slab = self._state.slab
        if slab is not None and name in self.slot_names:
            index = self._get_variable_index(reference_variable)
            if index in slab.indices:
                path = getattr(reference_variable, "path", reference_variable.name)
                path = path.replace("/", "_").replace(":", "_")
                with keras.name_scope(self.name):
                    piece = slab.slice(
                        index, name, name=f"{path}_{name}", initializer=initializer
                    )
                self._newest = piece  # assigning is how an optimizer learns of state
                return piece
        made = super().add_variable_from_reference(
            reference_variable, name=name, initializer=initializer
        )
        if name == "gradient_accumulator":
            self._state.accumulators.append(made)
        return made

    def add_shared_variable(self, name: str, **arguments: Any) -> Any:
        """State that belongs to no single weight, such as an estimated distance."""
        made = self.add_variable(name=name, **{"dtype": "float32"} | arguments)
        self._state.shared[name] = made
        return made

    def exclude_from_weight_decay(
        self, var_list: Any = None, var_names: Any = None
    ) -> None:
        if self.built:
            raise ModelError(
                "`exclude_from_weight_decay()` must be called before the optimizer is "
                "built, which happens in the first step. Pass decay_on=... instead."
            )
        known = list(var_list or [])
        pattern = re.compile("|".join(set(var_names))) if var_names else None
        self._state.excluded = lambda v: (
            any(v is one or native(v) is one for one in known)
            or (pattern is not None and pattern.search(v.name) is not None)
        )

    # -- one step ---------------------------------------------------------------------

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Updates the weights with one gradient each, and all state."""
        grads = list(grads)
        if not grads:
            return
        variables = self._known_variables(grads, trainable_variables)
        grads, variables = _options.drop_missing(grads, variables)
        grads, variables = self._overwrite(grads, variables)
        if variables:
            if self.loss_scale_factor is not None:
                grads = [g / self.loss_scale_factor for g in grads]
            self._apply_known(grads, variables)
        self._count.assign_add(1)

    @property
    def _count(self) -> Any:
        """Calls of `apply` so far; `iterations` counts updates instead."""
        return self.variables[0]

    def _known_variables(self, grads: list[Any], variables: Any) -> list[Any]:
        if variables is None:
            if not self.built:
                raise ModelError(
                    "When passing `grads` without `variables`, the optimizer must "
                    "already be built on a list of variables. Call "
                    "`optimizer.build(trainable_variables)` first."
                )
            variables = self._state.variables
        variables = list(variables)
        if len(variables) != len(grads):
            raise ConfigError(
                f"One gradient per variable is needed. Received: {len(grads)} "
                f"gradients for {len(variables)} variables."
            )
        if not self.built:
            self.build(variables)
        return variables

    def _index(self, variable: Any) -> int:
        try:
            return self._get_variable_index(variable)
        except KeyError:
            raise ModelError(
                f"Unknown variable: {variable}. This optimizer can only be called for "
                "the variables it was built with. For a new set of variables, create "
                "a new optimizer."
            ) from None

    def _overwrite(self, grads: list[Any], variables: list[Any]) -> Any:
        """Assigns what comes as a gradient but is a value (float8 scales)."""
        kept = []
        for g, v in zip(grads, variables, strict=True):
            if not getattr(v, "overwrite_with_gradient", False):
                kept.append((g, v))
            elif not self.gradient_accumulation_steps:
                v.assign(g)
            else:
                self._overwrite_accumulated(g, v)
        return [g for g, _ in kept], [v for _, v in kept]

    def _overwrite_accumulated(self, gradient: Any, variable: Any) -> None:
        accumulator = self._state.accumulators[self._index(variable)]
        due = (self._count + 1) % self.gradient_accumulation_steps == 0
        largest = ops.maximum(gradient, accumulator)
        variable.assign(ops.where(due, largest, variable))
        accumulator.assign(ops.where(due, ops.zeros_like(largest), largest))

    def _apply_known(self, grads: list[Any], variables: list[Any]) -> None:
        indices = [self._index(v) for v in variables]
        if _replicas.has_strategy() or not self.keeps_sparse:
            grads = [_replicas.densify(g) for g in grads]
        scalars = {
            "lr": ops.cast(self.learning_rate, "float32"),
            "iterations": ops.convert_to_tensor(self.iterations),
            "count": ops.convert_to_tensor(self._count),
        }
        local = {
            "cells": [
                self._natives(i, v) for i, v in zip(indices, variables, strict=True)
            ],
            "shared": {n: native(v) for n, v in self._state.shared.items()},
        }

        def update(grads, scalars, local):
            cells = [
                self._cell(i, found)
                for i, found in zip(indices, local["cells"], strict=True)
            ]
            _step.run(self, grads, cells, local["shared"], scalars)

        _replicas.on_each_replica(update, grads, scalars, local)

    @property
    def keeps_sparse(self) -> bool:
        """Whether sparse gradients reach `update_step` as they are."""
        return self.takes_sparse and not (
            self.gradient_accumulation_steps
            or self.cautious
            or self.centralize
            or self.adaptive_clip
            or self.clipnorm
            or self.global_clipnorm
            or self.clipvalue
            or self.skip_nonfinite
        )

    def _natives(self, index: int, variable: Any) -> dict[str, Any]:
        found = {"": native(variable)}
        for name, variables in self._state.slots.items():
            if index < len(variables) and variables[index] is not None:
                found[name] = native(variables[index])
        if self._state.accumulators:
            found["gradient_accumulator"] = native(self._state.accumulators[index])
        return found

    def _cell(self, index: int, found: dict[str, Any]) -> Cell:
        state = self._state
        decays = state.decays[index] and self.weight_decay is not None
        rest = {name: v for name, v in found.items() if name}
        extra = {name: rest.pop(name) for name in _HIDDEN if name in rest}
        return Cell(
            index=index,
            weight=found[""],
            slots=rest,
            extra=extra,
            decay=float(self.weight_decay) if decays else 0.0,
            multiplier=state.multipliers[index],
            in_slab=state.slab is not None and index in state.slab.indices,
            constraint=getattr(state.variables[index], "constraint", None),
        )

    def update(
        self, grads: list[Any], cells: list[Cell], lr: Any, step: Any, *, shared: Any
    ) -> None:
        """Updates all weights; methods that couple them write their own.

        Args:
            grads: one gradient per cell, after clipping.
            cells: weights with their state.
            lr: learning rate, a scalar tensor.
            step: number of this update, from 1, a scalar tensor.
            shared: variables made by `add_shared_variable`, by name.
        """
        small, rest = _slab.take(self._state.slab, grads, cells)
        if small is not None:
            slab = self._state.slab
            _updates.update_slab(self, small[0], small[1], slab, lr, step)
        for gradient, cell in rest:
            _updates.update_one(self, gradient, cell, lr, step)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        pairs = [[chooser.to_dict(), factor] for chooser, factor in self.multipliers]
        return {
            **super().get_config(),
            "cautious": self.cautious,
            "centralize": self.centralize,
            "adaptive_clip": self.adaptive_clip,
            "multipliers": pairs,
            "decay_on": None if self.decay_on is None else self.decay_on.to_dict(),
            "skip_nonfinite": self.skip_nonfinite,
        }
