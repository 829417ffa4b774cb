"""What goes on around one update of all weights, whatever the method.

`apply` matches gradients to weights, adds them up over the replicas, and on each of
them runs `OneCall` around `update`, which a subclass writes.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import _compat, runtime
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.optimizers import _gradients, _options
from keras_dlopt.optimizers._cells import Cell
from keras_dlopt.optimizers._one_call import OneCall
from keras_dlopt.optimizers._slab import Slab

# State that belongs to the engine, which no rule sees.
HIDDEN = ("average", "gradient_accumulator")
_IDLE = "idle"  # in files, beside the numbers of variables


@dataclasses.dataclass(eq=False)
class Built:
    """What `build` finds out; a plain object, so that Keras does not track it twice."""

    variables: list[Any] = dataclasses.field(default_factory=list)
    slots: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    shared: dict[str, Any] = dataclasses.field(default_factory=dict)
    decays: list[bool] = dataclasses.field(default_factory=list)
    multipliers: list[float] = dataclasses.field(default_factory=list)
    slab: Slab | None = None
    partial: bool = False  # whether a call left weights out
    idle: dict[int, int] = dataclasses.field(default_factory=dict)  # updates without
    since: dict[int, int] = dataclasses.field(default_factory=dict)  # of waiting ones
    excluded: Callable[[Any], bool] = lambda variable: False


class Engine(keras.optimizers.Optimizer):
    """Keras' optimizer with another `apply`; see `keras_dlopt.optimizers.Optimizer`."""

    # Whether `update_step` of a Keras base class takes sparse gradients.
    takes_sparse = False
    # How gradients are added up over replicas: (grads, variables) -> grads; None for
    # their sum.
    exchange: Callable[[list[Any], list[Any]], list[Any]] | None = None
    # Whether `update` wants the weights without a gradient as well, as `resting`.
    moves_all = False

    cautious: bool
    centralize: bool
    adaptive_clip: float | None
    multipliers: Any
    decay_on: Any
    skip_nonfinite: bool

    def __init__(self, *, name: str | None = None, **options: Any):
        # Without a name Keras gives each class its own.
        super().__init__(**options, **({} if name is None else {"name": name}))
        self._built = Built()

    def update(
        self, grads: list[Any], cells: list[Cell], lr: Any, step: Any, *, shared: Any
    ) -> None:
        """Updates all weights; a subclass writes it.

        Args:
            grads: one gradient per cell, after clipping.
            cells: weights with their state.
            lr: learning rate, a scalar tensor.
            step: number of this update, from 1, a scalar tensor.
            shared: variables made by `add_shared_variable`, by name.
        """
        raise TypeError(f"{type(self).__name__} must define `rule` or `update`.")

    # -- building ---------------------------------------------------------------------

    def build(self, variables: Sequence[Any]) -> None:
        """Finds out what each variable's update needs, and creates its state."""
        built = self._built
        built.variables = list(variables)
        built.multipliers = _options.multipliers_of(self.multipliers, built.variables)
        decays = _options.chosen(self.decay_on, built.variables)
        built.decays = [
            chosen and not built.excluded(v)
            for v, chosen in zip(built.variables, decays, strict=True)
        ]
        built.slab = self.plan_slab(built.variables)
        super().build(built.variables)

    def rest(self, variables: Sequence[Any]) -> None:
        """Weights wait from now on; updates until `go_on` are none of theirs."""
        now = self._updates
        for variable in variables:
            self._built.since.setdefault(self._index(variable), now)

    def go_on(self, variables: Sequence[Any], idle: int = 0) -> None:
        """Weights begin, or go on; counts for what is traced after this.

        Args:
            variables: that waited, or of which it is not known.
            idle: updates without those that were never seen to wait.
        """
        built = self._built
        for index in map(self._index, variables):
            if index in built.since:
                built.idle[index] = self._idle(index)
                del built.since[index]
            else:
                built.idle.setdefault(index, idle)

    @property
    def _updates(self) -> int:
        return int(np.max(runtime.to_numpy(self.iterations)))

    def _idle(self, index: int) -> int:
        """Updates so far that a weight had no part in."""
        before, now = self._built.idle.get(index, 0), self._updates
        return before + now - self._built.since.get(index, now)

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        idle = [self._idle(index) for index in range(len(self._built.variables))]
        if any(idle):
            store[_IDLE] = np.array(idle, "int64")

    def load_own_variables(self, store: Any) -> None:
        if _IDLE in store.keys():  # noqa: SIM118 - h5's entries are no mappings
            idle = np.asarray(store[_IDLE]).tolist()
            self._built.idle = {i: n for i, n in enumerate(idle) if n}
            store = {key: store[key] for key in store.keys() if key != _IDLE}  # noqa: SIM118
        super().load_own_variables(store)

    def plan_slab(self, variables: list[Any]) -> Slab | None:
        """Which variables keep their state in a slab; none, unless overridden."""
        return None

    def add_optimizer_variables(
        self, trainable_variables: Any, name: Any, initializer: Any = "zeros"
    ) -> Any:
        made = super().add_optimizer_variables(trainable_variables, name, initializer)
        names, lists = ([name], [made]) if isinstance(name, str) else (name, made)
        for slot, variables in zip(names, lists, strict=True):
            self._built.slots[slot] = list(variables)
        return made

    def add_variable_from_reference(
        self, reference_variable: Any, name: Any = None, initializer: Any = "zeros"
    ) -> Any:
        made = super().add_variable_from_reference(
            reference_variable, name=name, initializer=initializer
        )
        if name == "gradient_accumulator":  # Keras makes these one by one
            self._built.slots.setdefault(name, []).append(made)
        return made

    def add_shared_variable(self, name: str, **arguments: Any) -> Any:
        """State that belongs to no single weight, such as an estimated distance."""
        made = self.add_variable(name=name, **{"dtype": "float32"} | arguments)
        self._built.shared[name] = made
        return made

    def exclude_from_weight_decay(
        self, var_list: Any = None, var_names: Any = None
    ) -> None:
        if self.built:
            raise ModelError(
                "`exclude_from_weight_decay()` must be called before the optimizer is "
                "built, which happens in the first step. Pass decay_on=... instead."
            )
        known = [runtime.native(v) for v in var_list or []]
        pattern = re.compile("|".join(set(var_names))) if var_names else None
        self._built.excluded = lambda v: (
            any(runtime.native(v) is one for one in known)
            or (pattern is not None and pattern.search(v.name) is not None)
        )

    # -- from gradients to replicas ---------------------------------------------------

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Updates the weights with one gradient each, and all state."""
        grads = list(grads)
        if not grads:
            return
        variables = self._known_variables(grads, trainable_variables)
        grads, variables = _options.drop_missing(grads, variables)
        grads, variables = self._overwrite(grads, variables)
        if not variables:
            self._count.assign_add(1)
            return
        if self.loss_scale_factor is not None:
            grads = [ops.divide(g, self.loss_scale_factor) for g in grads]
        self._apply_known(grads, variables)

    @property
    def _count(self) -> Any:
        """Calls of `apply` that were not skipped; `iterations` counts updates."""
        return self.variables[0]

    def _known_variables(self, grads: list[Any], variables: Any) -> list[Any]:
        if variables is None:
            if not self.built:
                raise ModelError(
                    "When passing `grads` without `variables`, the optimizer must "
                    "already be built on a list of variables. Call "
                    "`optimizer.build(trainable_variables)` first."
                )
            variables = self._built.variables
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
        index = _compat.place_of(self, variable)
        if index is None:
            raise ModelError(
                f"Unknown variable: {variable}. This optimizer can only be called for "
                "the variables it was built with. For a new set of variables, create "
                "a new optimizer."
            )
        return index

    def _overwrite(self, grads: list[Any], variables: list[Any]) -> Any:
        """Assigns what comes as a gradient but is a value (float8 scales)."""
        pairs = list(zip(grads, variables, strict=True))
        values = [p for p in pairs if getattr(p[1], "overwrite_with_gradient", False)]
        if not values:
            return grads, variables
        finite = _gradients.all_finite(grads) if self.skip_nonfinite else True
        for g, v in values:
            if self.gradient_accumulation_steps:
                self._overwrite_accumulated(g, v, finite)
            else:
                v.assign(g if finite is True else ops.where(finite, g, v))
        kept = [p for p in pairs if not any(p is one for one in values)]
        return [g for g, _ in kept], [v for _, v in kept]

    def _overwrite_accumulated(self, gradient: Any, variable: Any, finite: Any) -> None:
        accumulator = self._built.slots["gradient_accumulator"][self._index(variable)]
        due = (self._count + 1) % self.gradient_accumulation_steps == 0
        due = ops.logical_and(due, finite)
        largest = ops.maximum(ops.where(finite, gradient, accumulator), accumulator)
        variable.assign(ops.where(due, largest, variable))
        accumulator.assign(ops.where(due, ops.zeros_like(largest), largest))

    def _apply_known(self, grads: list[Any], variables: list[Any]) -> None:
        indices = [self._index(v) for v in variables]
        scalar = self._scalar_dtype(variables)
        # Keras' sparse steps have constants of float32 also where weights are wider.
        keep = self.keeps_sparse and scalar != "float64" and not runtime.has_strategy()
        reduce = runtime.sum_repeats if keep else runtime.densify
        grads = [reduce(g) for g in grads]
        others = self._without(indices)
        self._built.partial |= bool(others)
        means = self.use_ema or self.gradient_accumulation_steps or self.moves_all
        resting = others if means else []
        scalars = {
            "lr": ops.cast(self.learning_rate, scalar),
            "iterations": runtime.value(self.iterations),
            "count": runtime.value(self._count),
        }
        local = {
            "cells": [
                self._natives(i, v) for i, v in zip(indices, variables, strict=True)
            ],
            "resting": [self._natives(i, self._built.variables[i]) for i in resting],
            "shared": {n: runtime.native(v) for n, v in self._built.shared.items()},
            "counter": runtime.native(self._count),
        }

        def update(grads, scalars, local):
            OneCall(
                self,
                grads,
                cells=self._cells(indices, local["cells"]),
                resting=self._cells(resting, local["resting"]),
                shared=local["shared"],
                counter=local["counter"],
                **scalars,
            ).run()

        def add(grads):
            if self.exchange is None:
                return runtime.total(grads)
            return self.exchange(grads, variables)

        runtime.on_each_replica(update, grads, scalars, local, add=add)

    def _scalar_dtype(self, variables: list[Any]) -> str:
        """float64 for a rate and weights that are, float32 for all others."""
        wide = [runtime.compute_dtype(v) == "float64" for v in variables]
        rate = getattr(self.learning_rate, "dtype", "float32")
        return "float64" if all(wide) and rate == "float64" else "float32"

    def _without(self, indices: list[int]) -> list[int]:
        """The weights without a gradient in this call."""
        present = set(indices)
        return [
            i
            for i, v in enumerate(self._built.variables)
            if i not in present and not getattr(v, "overwrite_with_gradient", False)
        ]

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
        found = {"": runtime.native(variable)}
        for name, variables in self._built.slots.items():
            if index < len(variables) and variables[index] is not None:
                found[name] = runtime.native(variables[index])
        return found

    def _cells(self, indices: list[int], natives: list[dict[str, Any]]) -> list[Cell]:
        return [self._cell(i, one) for i, one in zip(indices, natives, strict=True)]

    def _cell(self, index: int, found: dict[str, Any]) -> Cell:
        built = self._built
        decays = built.decays[index] and self.weight_decay
        return Cell(
            index=index,
            weight=found[""],
            slots={n: v for n, v in found.items() if n and n not in HIDDEN},
            extra={n: found[n] for n in HIDDEN if n in found},
            decay=float(self.weight_decay) if decays else None,
            multiplier=built.multipliers[index],
            idle=built.idle.get(index, 0),
            constraint=getattr(built.variables[index], "constraint", None),
            frozen=not getattr(built.variables[index], "trainable", True),
        )
