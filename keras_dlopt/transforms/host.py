"""What a transformed model and a transformed layer share: slots, values, updates."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import _compat
from keras_dlopt.codecs.hints import Codebook
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph import hooks
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
from keras_dlopt.transforms.base import Chain, Context, Member, State, Transform
from keras_dlopt.transforms.recipe import Recipe

NEVER = -1

# Effective weights put in place of the transforms' own, per thread; see `probing`.
_PROBED = threading.local()


def _finite(weight: np.ndarray, path: str) -> np.ndarray:
    """The weight itself, or `ModelError` where rounding would hide what it has."""
    count = int(np.sum(~np.isfinite(weight)))
    if count:
        raise ModelError(
            f"{path!r} holds {count} values that are not finite (NaN or infinity). "
            "Load an earlier checkpoint, or train again with a lower learning rate."
        )
    return weight


def computed(variable: Any) -> np.ndarray:
    """A weight on the host, half precision as float32: as transforms compute."""
    value = to_numpy(variable)
    return value.astype("float32") if value.dtype.itemsize < 4 else value


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    """One target with the variables that hold its transform's state.

    Attributes:
        target: where it acts.
        state: the variables by name.
        trained: the names of those that the optimizer trains.
    """

    target: Target
    state: dict[str, Any]
    trained: tuple[str, ...] = ()

    @property
    def frozen(self) -> bool:
        """Whether the user froze the weight or layer."""
        weight, layer = self.target.variable, self.target.layer
        return not (
            getattr(weight, "trainable", True) and getattr(layer, "trainable", True)
        )

    def tensors(self) -> dict[str, Any]:
        """The state as tensors of the current graph."""
        return {k: ops.convert_to_tensor(v) for k, v in self.state.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """The state on the host."""
        return {k: to_numpy(v) for k, v in self.state.items()}

    def weight(self) -> Any:
        """The latent weight on the host; None for activations."""
        return None if self.target.variable is None else computed(self.target.variable)

    def effective(self, transform: Transform, context: Context | None = None) -> Any:
        """What the layer sees of this weight, by default outside of training."""
        weight = ops.convert_to_tensor(self.target.variable)
        context = context or Context(self.target)
        dtype = keras.backend.standardize_dtype(weight.dtype)
        if dtype == "float32" or not keras.backend.is_float_dtype(dtype):
            return transform.apply(weight, self.tensors(), context)
        # Half precision is too coarse for scales and sums; float64 stays.
        wide = "float64" if dtype == "float64" else "float32"
        state = {
            name: ops.cast(value, wide)
            if keras.backend.is_float_dtype(value.dtype)
            else value
            for name, value in self.tensors().items()
        }
        value = transform.apply(ops.cast(weight, wide), state, context)
        return ops.cast(value, dtype)

    def write(self, name: str, value: Any) -> None:
        """Assigns one state variable."""
        self.state[name].assign(value)


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """One recipe entry at work: its transform, its slots, its last update's step."""

    transform: Transform
    slots: tuple[Slot, ...]
    last: Any

    def members(self, read: Callable[[Any, str], np.ndarray]) -> list[Member]:
        """The group as `Transform.update` sees it.

        Args:
            read: gives the statistic of a name for a variable.
        """
        names = self.transform.statistics
        return [
            Member(
                s.target,
                s.weight(),
                s.arrays(),
                _OnDemand(s.target.variable, names, read),
                place,
            )
            for place, s in enumerate(self.slots)
        ]


class _OnDemand(Mapping):
    """The statistics of one weight, measured when they are read."""

    def __init__(self, variable, names, read):
        self._variable, self._names, self._read = variable, names, read

    def __getitem__(self, name):
        return self._read(self._variable, name)

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)


@contextlib.contextmanager
def probing(values: dict[int, Any]) -> Iterator[None]:
    """Runs hosts of this thread with given effective weights, by `id(variable)`."""
    _PROBED.values = values
    try:
        yield
    finally:
        del _PROBED.values


class TransformHost:
    """Mixin for a Keras layer or model that runs another one with computed weights."""

    def _attach(self, wrapped: Any, recipe: Recipe) -> None:
        """Creates the state variables for every target that the recipe matches."""
        # Keras tracks layers and variables held in attributes; what a group holds is
        # tracked already, so it is kept out of Keras' sight.
        self._wrapped = _Hidden(wrapped)
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
        self._hidden_groups = _Hidden(tuple(groups))
        self._acted = _Hidden(Acted(wrapped, recipe))
        # Replicas meet where a transform writes its state, in the middle of a call.
        _compat.keep_losses_apart(self)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The recipe entries at work."""
        return self._hidden_groups.value

    def _slots(self, number, transform, targets) -> tuple[Slot, ...]:
        weights = [
            None if t.variable is None else _finite(computed(t.variable), t.path)
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
            for name in slot.trained:
                slot.state[name].trainable = id(slot.state[name]) in free

    def _state_variable(self, name: str, spec: State) -> Any:
        value = np.asarray(spec.value)
        floating = np.issubdtype(value.dtype, np.floating)
        return self.add_weight(  # type: ignore[attr-defined]
            shape=value.shape,
            dtype=str(value.dtype),
            initializer=lambda shape, dtype: ops.convert_to_tensor(value, dtype=dtype),
            trainable=spec.trainable,
            autocast=False,
            name=name.replace("/", "_"),
            aggregation="mean" if floating else "only_first_replica",
        )

    def _run(self, call: Callable[[], Any], *, training: bool) -> Any:
        """Runs `call` with the effective weights and quantized activations."""
        seed = getattr(self, "seed_generator", None)
        values, places, acted = [], [], self._acted.value
        for group in self.groups:
            for slot in group.slots:
                context = Context(
                    target=slot.target,
                    training=training,
                    seed=seed,
                    write=slot.write if training else lambda *_: None,
                    add_loss=self._add_penalty,
                )
                if group.transform.kind == "activation":
                    passage = Passage(group.transform, slot, context, acted)
                    places.append((slot.target, passage))
                    continue
                variable = slot.target.variable
                value = getattr(_PROBED, "values", {}).get(id(variable))
                if value is None:
                    value = slot.effective(group.transform, context)
                values.append((variable, value))
        scope = _compat.WeightOverlay(values)
        with scope, hooks.hooked(taps(places)):
            outputs = call()
        acted.ran = True
        scope.commit(self)
        return outputs

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
                weight = _finite(slot.weight(), slot.target.path)
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


class _Hidden:
    """Holds an object where Keras' attribute tracking does not look."""

    def __init__(self, value: Any):
        self.value = value
