"""The one concept of the package: a weight replaced by a function of it and a state.

Pruning, clustering and quantization are each a `Transform`. Its methods are pure: the
state is a dict of arrays that the caller keeps, so the same transform serves any number
of weights, replicas and backends.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt.config import Value
from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.targets import Target


@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """One array of a transform's state, as `init` asks for it.

    Attributes:
        value: initial value; its shape and dtype stay.
        trainable: whether the optimizer trains it.
    """

    value: np.ndarray
    trainable: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One weight of the group that a recipe entry selected, as `update` sees it.

    Attributes:
        target: where it is.
        weight: its value, as it reaches this transform.
        state: this transform's state for it.
        statistics: what was measured on training data, in the weight's shape:
            `"gradient"`, the mean gradient of the loss over some batches, and
            `"squared_gradient"`, the mean of its square. Both belong to the value that
            the layer sees, so removed weights have one too. Computed when first read.
        place: its position in the group, the same in every process.
    """

    target: Target
    weight: np.ndarray
    state: dict[str, np.ndarray]
    statistics: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    place: int = 0


def _nothing(*_args) -> None:
    """Drops what a transform reports outside of training."""


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """What `apply` may know and do beyond its weight and state.

    Attributes:
        target: where the weight or activation is.
        training: whether this is a training step.
        seed: a `keras.random.SeedGenerator`, for transforms with `random = True`.
        write: `write(name, value)` stores a new value of the state `name`.
        add_loss: adds a scalar to the model's loss.
        before: the state before this run of the model, for an activation that is not
            the first at its place in it; None otherwise.
    """

    target: Target
    training: bool = False
    seed: Any = None
    write: Callable[[str, Any], None] = _nothing
    add_loss: Callable[[Any], None] = _nothing
    before: Mapping[str, Any] | None = None

    def sibling(self, name: str) -> Any:
        """The tensor of the variable `name` of the same layer, such as `"gamma"`.

        Raises:
            ConfigError: if the layer has none of that name.
        """
        variables = self.target.layer.weights if self.target.layer is not None else ()
        for variable in variables:
            if variable.name == name:
                return ops.convert_to_tensor(variable)
        raise ConfigError(
            f"The layer of {self.target.path!r} has no variable {name!r}. "
            f"It has: {[v.name for v in variables]}."
        )


class Transform(Value):
    """Replaces a weight by a function of it and a little state.

    Subclasses write `apply`, and what else they need of `init`, `update`, `next_due`,
    `finalize` and `remaining`. The constructor's arguments must be kept as attributes
    of the same names: config, `repr` and `==` read them.

    Attributes:
        kind: `"weight"`, or `"activation"` for transforms of layer inputs and outputs.
        random: whether `apply` draws random numbers.
        statistics: names from `Member.statistics` that `update` reads.
        sets_weight: whether it gives the weight values of its own, in `update` as
            `"weight"` or at the end: links before it would be undone.
        own_weight: whether it trains numbers of its own in place of the weight.
        keeps_weight: whether the weight still counts then, as what it is added to.
        fixed_from: the step from which it no longer looks at what comes in; None if it
            always does. Up to there, a link before it in a chain must be done.
    """

    kind: str = "weight"
    random: bool = False
    statistics: tuple[str, ...] = ()
    sets_weight: bool = False
    own_weight: bool = False
    keeps_weight: bool = False
    fixed_from: int | None = None

    @property
    def replaces_weight(self) -> bool:
        """Whether the weight itself is not trained under it."""
        return self.own_weight

    def init(self, target: Target, weight: np.ndarray | None) -> dict[str, State]:
        """The state at the start.

        Args:
            target: where the weight is.
            weight: its value; None for activations. The shapes of the state may depend
                on its shape only.
        """
        return {}

    def init_group(
        self, targets: Sequence[Target], weights: Sequence[np.ndarray | None]
    ) -> list[dict[str, State]]:
        """`init` for all weights of a recipe entry, for what depends on all of them.

        The same `State` object given to several weights is one variable for them all.
        """
        return [self.init(t, w) for t, w in zip(targets, weights, strict=True)]

    def apply(self, weight: Any, state: dict[str, Any], context: Context) -> Any:
        """The effective weight: pure, differentiable, traced in the graph."""
        raise TypeError(f"{type(self).__name__} does not define apply().")

    def next_due(self, step: int) -> int | None:
        """The first step after `step` before which `update` wants to run.

        Args:
            step: training steps done at the last update; -1 before the first.
        """
        return None

    def update(self, group: Sequence[Member], step: int) -> list[dict[str, np.ndarray]]:
        """New state values between two steps, in NumPy, for a whole group of weights.

        Args:
            group: the weights that one recipe entry selected.
            step: training steps done so far.

        Returns:
            For each member the arrays that change; the key `"weight"` replaces the
            latent weight itself.
        """
        return [{} for _ in group]

    def finalize(
        self, target: Target, weight: np.ndarray, state: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, Any]:
        """The exact value to keep, and a coding hint or None.

        Returns:
            The weight, and a `codecs.Codebook` or `codecs.Grid` that describes it.
        """
        return self.evaluate(target, weight, state), None

    def remaining(self, step: int) -> str | None:
        """What of a schedule is still to come after `step`; None if nothing."""
        return None

    def evaluate(
        self, target: Target, weight: np.ndarray, state: dict[str, np.ndarray]
    ) -> np.ndarray:
        """`apply` outside of training, on NumPy arrays."""
        tensors = {k: ops.convert_to_tensor(v) for k, v in state.items()}
        value = self.apply(ops.convert_to_tensor(weight), tensors, Context(target))
        return np.asarray(ops.convert_to_numpy(value))

    def __rshift__(self, other: "Transform") -> "Transform":
        return Chain(_links(self) + _links(other))


def _links(transform) -> tuple[Transform, ...]:
    if not isinstance(transform, Transform):
        raise ConfigError(
            f"`>>` chains transforms, such as Prune(0.9) >> FakeQuant(bits=8). "
            f"Received: {transform!r}."
        )
    return transform.links if isinstance(transform, Chain) else (transform,)


@keras.saving.register_keras_serializable("keras_dlopt")
class Chain(Transform):
    """Transforms applied one after the other; what `a >> b` builds.

    Args:
        links: the transforms, first to last.

    Raises:
        ConfigError: if weight and activation transforms are mixed, or if a link would
            undo what one before it does.

    Example:
        >>> from keras_dlopt.transforms import Prune, Cluster
        >>> len((Prune(0.9) >> Cluster(16)).links)
        2
    """

    def __init__(self, links: Sequence[Transform]):
        self.links = tuple(links)
        kinds = {link.kind for link in self.links}
        if len(kinds) != 1:
            raise ConfigError(
                "A chain acts either on weights or on activations. "
                f"Received: {[f'{type(t).__name__} ({t.kind})' for t in self.links]}."
            )
        self.kind = kinds.pop()
        self.random = any(link.random for link in self.links)
        for i, link in enumerate(self.links[1:], 1):
            if link.sets_weight or link.own_weight:
                raise ConfigError(
                    f"{link!r} replaces the trained weight itself, so it must be the "
                    f"first of its chain. Received: {self!r}."
                )
            if link.fixed_from is not None:
                self._check_done(self.links[:i], link, link.fixed_from)

    def _check_done(self, before, link: Transform, start: int) -> None:
        """Raises `ConfigError` if what links do later would be lost."""
        for earlier in before:
            # What starts at once looks at the weight before the first update.
            left = earlier.remaining(start or -1)
            if start == 0 and earlier.random:
                left = left or "it learns while it trains"
            if left:
                raise ConfigError(
                    f"{link!r} fixes the weights at step {start}, and what "
                    f"{earlier!r} does later would be lost ({left}). Let it begin "
                    "when that has ended, such as Cluster(16, begin=1000)."
                )

    @property
    def statistics(self) -> tuple[str, ...]:  # type: ignore[override]
        """What any link wants to know beside the weights."""
        return tuple(sorted({n for link in self.links for n in link.statistics}))

    @property
    def sets_weight(self) -> bool:  # type: ignore[override]
        """Whether the first link replaces the weight itself."""
        return self.links[0].sets_weight

    @property
    def replaces_weight(self) -> bool:
        """Whether the first link trains numbers of its own in the weight's place."""
        return self.links[0].own_weight

    def init(self, target, weight):
        return self.init_group([target], [weight])[0]

    def init_group(self, targets, weights):
        states: list[dict[str, State]] = [{} for _ in targets]
        weights = list(weights)
        for i, link in enumerate(self.links):
            for j, own in enumerate(link.init_group(targets, weights)):
                states[j] |= {f"{i}_{name}": state for name, state in own.items()}
                if weights[j] is not None:
                    values = {name: state.value for name, state in own.items()}
                    weights[j] = link.evaluate(targets[j], weights[j], values)
        return states

    def apply(self, weight, state, context):
        for i, link in enumerate(self.links):

            def write(name, value, prefix=f"{i}_"):
                context.write(prefix + name, value)

            before = context.before and _part(context.before, i)
            own = dataclasses.replace(context, write=write, before=before)
            weight = link.apply(weight, _part(state, i), own)
        return weight

    def next_due(self, step):
        due = [link.next_due(step) for link in self.links]
        return min((d for d in due if d is not None), default=None)

    def update(self, group, step, *, last=None):
        """Updates the links that are due, each seeing the ones before it updated.

        Args:
            group: the weights that one recipe entry selected.
            step: training steps done so far.
            last: step of the last update; None updates every link.
        """
        changes: list[dict[str, np.ndarray]] = [{} for _ in group]
        weights = [member.weight for member in group]
        for i, link in enumerate(self.links):
            own = [
                dataclasses.replace(m, weight=w, state=_part(m.state, i))
                for m, w in zip(group, weights, strict=True)
            ]
            due = step if last is None else link.next_due(last)
            if due is not None and due <= step:
                new = link.update(own, step)
            else:
                new = [{} for _ in group]
            for j, (member, change) in enumerate(zip(own, new, strict=True)):
                if "weight" in change:
                    changes[j]["weight"] = change["weight"]
                    member = dataclasses.replace(member, weight=change["weight"])
                state = {k: v for k, v in change.items() if k != "weight"}
                changes[j] |= {f"{i}_{k}": v for k, v in state.items()}
                if i + 1 < len(self.links):
                    weights[j] = link.evaluate(
                        member.target, member.weight, member.state | state
                    )
        return changes

    def finalize(self, target, weight, state):
        hint = None
        for i, link in enumerate(self.links):
            weight, hint = link.finalize(target, weight, _part(state, i))
        return weight, hint

    def remaining(self, step):
        parts = [link.remaining(step) for link in self.links]
        return "; ".join(p for p in parts if p) or None

    def __repr__(self):
        return " >> ".join(map(repr, self.links))


def _part(state: Mapping[str, Any], i: int) -> dict[str, Any]:
    """The state of the i-th link, without its prefix."""
    prefix = f"{i}_"
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
