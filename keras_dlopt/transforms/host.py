"""What a transformed model and a transformed layer share: slots, values, updates."""

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import _compat
from keras_dlopt.codecs.hints import Codebook
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.targets import (
    Target,
    activation_targets,
    taps,
    weight_targets,
)
from keras_dlopt.graph.walk import layers_below
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.select import exact_paths
from keras_dlopt.transforms.acting import Acted, Passage
from keras_dlopt.transforms.base import Chain, Context, State
from keras_dlopt.transforms.calls import Calls
from keras_dlopt.transforms.recipe import Recipe
from keras_dlopt.transforms.regularizing import regularize, release
from keras_dlopt.transforms.seeds import KeepsRandomStates
from keras_dlopt.transforms.slots import Group, Slot, computed, finite

NEVER = -1

# Effective weights put in place of the transforms' own, per thread; see `probing`.
_PROBED = threading.local()
# The scopes in which each host's weights are computed now, per thread.
_SCOPES = threading.local()


@contextlib.contextmanager
def probing(values: dict[int, Any]) -> Iterator[None]:
    """Runs hosts of this thread with given effective weights, by `id(variable)`."""
    _PROBED.values = values
    try:
        yield
    finally:
        del _PROBED.values


class TransformHost(KeepsRandomStates):
    """Mixin for a Keras layer or model that runs another one with computed weights."""

    def _attach(self, wrapped: Any, recipe: Recipe) -> None:
        """Creates the state variables for every target that the recipe matches."""
        # Keras tracks layers and variables held in attributes; what a group holds is
        # tracked already, so it is kept out of Keras' sight.
        self._wrapped = Hidden(wrapped)
        self._hidden_states = Hidden([])
        # A weight without elements has nothing to transform.
        weights = [t for t in weight_targets(wrapped) if 0 not in (t.shape or ())]
        named = {p for selector, _ in recipe.entries for p in exact_paths(selector)}
        targets = weights + activation_targets(wrapped, named)
        groups = []
        for number, ((_, transform), matched) in enumerate(
            zip(recipe.entries, recipe.assign(targets), strict=True)
        ):
            slots = self._slots(number, transform, matched)
            never = State(np.array(NEVER, "int32"))
            last = self._state_variable(f"last_update_{number}", never)
            groups.append(Group(transform, slots, last))
        self._hidden_groups = Hidden(tuple(groups))
        self._acted = Hidden(Acted(wrapped, recipe))
        acted_on = [slot.target for group in groups for slot in group.slots]
        self._hidden_calls = Hidden(Calls(wrapped, acted_on))
        for group, slot in self._weight_slots():
            slot.rest()
            effective = functools.partial(self._effective, group, slot)
            carrier = slot.state[slot.trained[0]] if slot.carries else None
            regularize(slot.target.variable, effective, carrier)
        # Replicas meet where a transform writes its state, in the middle of a call.
        _compat.keep_losses_apart(self)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The recipe entries at work."""
        return self._hidden_groups.value

    def _slots(self, number, transform, targets) -> tuple[Slot, ...]:
        weights = [
            None if t.variable is None else finite(computed(t.variable), t.path)
            for t in targets
        ]
        states = transform.init_group(targets, weights)
        made: dict[int, Any] = {}  # one variable for each State, shared ones included
        for target, state in zip(targets, states, strict=True):
            for name, spec in state.items():
                if id(spec) not in made:
                    path = f"{target.path}/{number}_{name}"
                    made[id(spec)] = self._state_variable(path, spec)
        return tuple(
            Slot(
                target,
                {name: made[id(spec)] for name, spec in state.items()},
                tuple(name for name, spec in state.items() if spec.trainable),
                resting=transform.replaces_weight,
            )
            for target, state in zip(targets, states, strict=True)
        )

    @property
    def variables(self) -> list[Any]:
        """All variables; what a frozen layer's transform trains is frozen with it."""
        self._follow_frozen()
        return super().variables  # type: ignore[misc]

    @property
    def weights(self) -> list[Any]:
        """All weights; what a frozen layer's transform trains is frozen with it."""
        self._follow_frozen()
        return super().weights  # type: ignore[misc]

    def _follow_frozen(self) -> None:
        hidden = getattr(self, "_hidden_groups", None)
        slots = [s for g in (hidden.value if hidden else ()) for s in g.slots]
        # One variable may serve several weights: it is trained if one of them is.
        free = {id(s.state[n]) for s in slots if not s.frozen for n in s.trained}
        for slot in slots:
            slot.rest()
            for name in slot.trained:
                slot.state[name].trainable = id(slot.state[name]) in free

    def _state_variable(self, name: str, spec: State) -> Any:
        value = np.asarray(spec.value)
        floating = np.issubdtype(value.dtype, np.floating)
        variable = self.add_weight(  # type: ignore[attr-defined]
            shape=value.shape,
            dtype=str(value.dtype),
            initializer=lambda shape, dtype: ops.convert_to_tensor(value, dtype=dtype),
            trainable=spec.trainable,
            autocast=False,
            name=name.replace("/", "_"),
            aggregation="mean" if floating else "only_first_replica",
        )
        # By number: the names of layers follow Keras' counter.
        self._hidden_states.value.append(variable)
        number = len(self._hidden_states.value)
        _compat.in_checkpoints(self, variable, f"state_{number}")
        return variable

    def _weight_slots(self) -> Iterator[tuple[Group, Slot]]:
        for group in self.groups:
            if group.transform.kind == "weight":
                yield from ((group, slot) for slot in group.slots)

    def _effective(
        self, group: Group, slot: Slot, context: Context | None = None
    ) -> Any:
        """What the layer sees of a weight, whatever scope this is asked in."""
        probed = getattr(_PROBED, "values", {}).get(id(slot.target.variable))
        if probed is not None:
            return probed
        with contextlib.ExitStack() as stack:
            for host, scope in getattr(_SCOPES, "stack", ()):
                if host is self:
                    stack.enter_context(scope.paused())
            return slot.effective(group.transform, context)

    def run(self, call: Callable[[], Any], *, training: bool, part: Any = None) -> Any:
        """Runs `call` with the effective weights and quantized activations.

        Args:
            call: what runs the wrapped layer or model, or a part of it.
            training: whether this is a training step.
            part: the only layer that `call` runs; None for all.
        """
        values, places, acted = [], [], self._acted.value
        for group in self.groups:
            for slot in group.slots:
                if part is not None and part not in slot.target.parents:
                    continue
                context = self._context(slot, training)
                if group.transform.kind == "activation":
                    passage = Passage(group.transform, slot, context, acted)
                    places.append((slot.target, passage))
                    continue
                value = self._effective(group, slot, context)
                values.append((slot.target.variable, value))
        with self._hidden_calls.value.hooked(taps(places)):
            outputs = self.substituted(values, call)
        acted.ran = True
        return outputs

    @property
    def states(self) -> list[Any]:
        """The variables that hold the transforms' state: masks, scales, steps."""
        return list(self._hidden_states.value)

    def replaced(self) -> tuple[int, int]:
        """How many numbers of weights are replaced, and by how many trained ones.

        A variable that serves several weights counts once.
        """
        replaced, ours = 0, dict[int, int]()
        for group, slot in self._weight_slots():
            if slot.resting:
                first = getattr(group.transform, "links", (group.transform,))[0]
                size = math.prod(slot.target.shape or ())
                replaced += 0 if first.keeps_weight else size
                for name in slot.trained:
                    variable = slot.state[name]
                    ours[id(variable)] = math.prod(variable.shape)
        return replaced, sum(ours.values())

    def seen_values(self) -> list[tuple[Any, Any]]:
        """Each transformed variable with what its layer sees of it."""
        return [
            (s.target.variable, self._effective(g, s)) for g, s in self._weight_slots()
        ]

    def seen_through(self, call: Callable[[], Any]) -> Any:
        """Runs `call`, which reads weights but runs no layers, as `run` does."""
        return self.substituted(self.seen_values(), call)

    def substituted(self, values: list[Any], call: Callable[[], Any]) -> Any:
        """Runs `call` with other values of variables, given as pairs."""
        scope = _compat.WeightOverlay(values)
        before = getattr(_SCOPES, "stack", ())
        _SCOPES.stack = (*before, (self, scope))
        try:
            with scope:
                dlopt_scope = call  # noqa: F841 where the search for frames ends
                outputs = call()
        finally:
            _SCOPES.stack = before
        scope.commit(self)
        return outputs

    def is_running(self) -> bool:
        """Whether this thread is inside a call with the effective weights."""
        return any(host is self for host, _ in getattr(_SCOPES, "stack", ()))

    def _context(self, slot: Slot, training: bool) -> Context:
        return Context(
            target=slot.target,
            training=training,
            seed=getattr(self, "seed_generator", None),
            write=slot.write if training else lambda *_: None,
            add_loss=self._add_penalty,
        )

    def release(self) -> None:
        """Leaves the wrapped layer or model as if it had never been transformed."""
        for _, slot in self._weight_slots():
            release(slot.target.variable)
            slot.wake(slot.target.variable)

    def _add_penalty(self, loss: Any) -> None:
        """Adds a transform's loss, in the type that Keras sums losses in."""
        loss = ops.cast(loss, keras.config.floatx())
        self.add_loss(loss)  # type: ignore[attr-defined]

    def next_update(self) -> int | None:
        """The first step before which `update_transforms` has work to do."""
        due = [g.transform.next_due(int(to_numpy(g.last))) for g in self.groups]
        return min((d for d in due if d is not None), default=None)

    def update_transforms(self, step: int, *, statistics: Any = None) -> None:
        """Runs every scheduled update that is due before training step `step`.

        `fit` does this by itself; a custom training loop calls it before each step.

        Args:
            step: number of training steps done so far, 0 before the first.
            statistics: a `Statistics`, for transforms that need gradients.

        Raises:
            ConfigError: if one needs gradients and `statistics` is None.
        """

        def read(variable, name):
            if statistics is None:
                raise ConfigError(
                    f"An update at step {step} needs the {name} of "
                    f"{variable.path!r}. Train with fit(), or pass "
                    "update_transforms(step, statistics=Statistics(model, (x, y)))."
                )
            return statistics(variable, name, step)

        for group in self.groups:
            last = int(to_numpy(group.last))
            due = group.transform.next_due(last)
            if due is None or due > step:
                continue
            members = group.members(read)
            if isinstance(group.transform, Chain):
                changes = group.transform.update(members, step, last=last)
            else:
                changes = group.transform.update(members, step)
            for slot, change in zip(group.slots, changes, strict=True):
                for name, value in change.items():
                    if name == "weight":
                        slot.target.variable.assign(value)
                    else:
                        slot.write(name, value)
            group.last.assign(step)

    def check_updated(self) -> None:
        """Raises `ModelError` if a scheduled transform was never updated."""
        for group in self.groups:
            never = int(to_numpy(group.last)) == NEVER
            due = group.transform.next_due(NEVER)
            if never and due is not None:
                raise ModelError(
                    f"{group.transform!r} follows a schedule and was never updated, so "
                    "there is nothing to finalize. Its first update is due at step "
                    f"{due}. Train beyond it with fit(), which updates by itself (a "
                    "model built from TransformedLayer needs UpdateTransforms() among "
                    "its callbacks), or call update_transforms(step) in your own loop."
                )

    def check_acted(self, slots: Iterable[Slot] = ()) -> None:
        """Raises `ModelError` if a quantizer of an activation has no effect.

        Args:
            slots: those that tensors came to in other runs than this model's own.
        """
        acted = self._acted.value
        acted.slots.update(slots)
        acted.ran = acted.ran or bool(acted.slots)
        acted.check(self.groups)

    def final_values(self) -> Iterator[tuple[Target, np.ndarray, Any]]:
        """For every weight of the recipe: target, exact final value, coding hint."""
        for group in self.groups:
            if group.transform.kind == "activation":
                continue
            for slot in group.slots:
                weight = finite(slot.weight(), slot.target.path)
                value, hint = group.transform.finalize(
                    slot.target, weight, slot.arrays()
                )
                dtype = to_numpy(slot.target.variable).dtype
                if isinstance(hint, Codebook):
                    hint = Codebook(hint.indices, hint.values.astype(dtype))
                yield slot.target, value.astype(dtype), hint

    def remaining(self) -> list[str]:
        """What of each schedule is still to come."""
        texts = [g.transform.remaining(int(to_numpy(g.last))) for g in self.groups]
        return [text for text in texts if text]


def hosts(layer: Any) -> list[TransformHost]:
    """Every transformed model or layer at or below `layer`."""
    own = [layer] if isinstance(layer, TransformHost) else []
    return own + layers_below(layer, TransformHost)


class Hidden:
    """Holds an object where Keras' attribute tracking does not look."""

    def __init__(self, value: Any):
        self.value = value
