"""Which weights and layers of a model are frozen, set and set back."""

from collections.abc import Sequence
from typing import Any

from keras_dlopt.graph.targets import Target
from keras_dlopt.graph.walk import children
from keras_dlopt.transforms.updating import hosts


class Flags:
    """The `trainable` flags of a model as the user left them, to change and restore.

    Args:
        model: transformed or not.
        targets: its weights.
    """

    def __init__(self, model: Any, targets: Sequence[Target]):
        self.targets = list(targets)
        self.applied = False
        slots = [s for h in hosts(model) for g in h.groups for s in g.slots]
        # By weight: the slots whose state is trained with it, or in its place.
        self._slots: dict[int, list[Any]] = {}
        for slot in slots:
            if slot.target.variable is not None:
                self._slots.setdefault(id(slot.target.variable), []).append(slot)
        self._layers = {id(t.layer): t.layer for t in targets}
        self._before = [(one, one.trainable) for one in self._layers.values()]
        self._weights = {id(t.variable): self._own(t.variable) for t in targets}

    def _own(self, variable: Any) -> bool:
        """Whether the user has a weight trained, itself or what takes its place."""
        for slot in self._slots.get(id(variable), ()):
            if slot.resting:
                return slot.own["trainable"]
        return variable.trainable

    def _rests(self, variable: Any) -> bool:
        return any(slot.resting for slot in self._slots.get(id(variable), ()))

    def never(self, target: Target) -> bool:
        """Whether the user froze it, so that no stage will train it."""
        return not (self._weights[id(target.variable)] and target.layer.trainable)

    def trained_for(self, ids: set[int]) -> list[Any]:
        """The variables that the optimizer trains for these weights."""
        found = {}
        for target in self.targets:
            if id(target.variable) in ids and self._weights[id(target.variable)]:
                if not self._rests(target.variable):
                    found[id(target.variable)] = target.variable
                for slot in self._slots.get(id(target.variable), ()):
                    for name in slot.trained:
                        found[id(slot.state[name])] = slot.state[name]
        return list(found.values())

    def apply(self, waiting: set[int]) -> None:
        """Freezes these weights, by id, and no other that the user has trained."""
        self.applied = True
        whole = {
            key
            for key, layer in self._layers.items()
            if not children(layer) and self._waits(layer, waiting)
        }
        for layer, trainable in self._before:
            self._flag(layer, trainable and id(layer) not in whole)
        for target in self.targets:
            free = id(target.variable) not in waiting
            self._flag_weight(target, self._weights[id(target.variable)] and free)

    def _waits(self, layer: Any, waiting: set[int]) -> bool:
        own = [t for t in self.targets if t.layer is layer]
        trained = [t for t in own if self._weights[id(t.variable)]]
        return bool(trained) and all(id(t.variable) in waiting for t in trained)

    def _flag(self, layer: Any, value: bool) -> None:
        if layer.trainable != value:
            inner = [(one, one.trainable) for one in children(layer)]
            layer.trainable = value
            for one, before in inner:  # it set those inside as well
                one.trainable = before

    def _flag_weight(self, target: Target, value: bool) -> None:
        variable = target.variable
        for slot in self._slots.get(id(variable), ()):
            if slot.resting:
                slot.own["trainable"] = value
                slot.rest()
                return
        # BatchNormalization's statistics are weights that are never trained.
        if variable.trainable != value:
            variable.trainable = value

    def restore(self) -> None:
        """Sets all flags as they were."""
        self.apply(set())
        self.applied = False
