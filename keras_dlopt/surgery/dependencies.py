"""Which channels of a model stand or fall together, and which must stay."""

import dataclasses
import functools
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.errors import ModelError
from keras_dlopt.surgery.rules import NORMALIZED_RULES, RULES
from keras_dlopt.surgery.survey import Pin, Survey
from keras_dlopt.transforms.updating import hosts

LARGEST = 1e6


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only leave together, over all layers they pass.

    Attributes:
        number: of the group, its index in masks of groups.
        made_by: path of each layer that makes some of them -> their indices among its
            output channels.
        pinned: why they must stay; empty if they can leave.
    """

    number: int
    made_by: dict[str, tuple[int, ...]]
    pinned: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Pinned:
    """What holds channels in place.

    Attributes:
        path: of the layer or tensor.
        kind: its class.
        reason: in words.
        groups: how many groups of channels it holds.
    """

    path: str
    kind: str
    reason: str
    groups: int

    def __str__(self) -> str:
        return f"{self.path} ({self.kind}): {self.reason}, {self.groups} groups"


class Dependencies:
    """The channel groups of one model; made by `dependencies`."""

    def __init__(self, survey: Survey):
        self.survey = survey
        self.labels = survey.classes.labels()
        self.count = int(self.labels.max(initial=-1)) + 1
        held = [self.labels[pin.ids] for pin in survey.pins]
        self.held = np.zeros(self.count, bool)
        for groups in held:
            self.held[groups] = True

    @functools.cached_property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """All groups that some layer makes, in the order of the model."""
        made: dict[int, dict[str, list[int]]] = {}
        for path, ids in self.survey.made.items():
            for index, label in enumerate(self.labels[ids].tolist()):
                made.setdefault(label, {}).setdefault(path, []).append(index)
        why: dict[int, list[str]] = {}
        for pin in self.survey.pins:
            text = f"{pin.path} ({pin.kind}): {pin.reason}"
            for label in set(self.labels[pin.ids].tolist()) & made.keys():
                why.setdefault(label, []).append(text)
        return tuple(
            ChannelGroup(
                label,
                {path: tuple(indices) for path, indices in places.items()},
                tuple(why.get(label, ())),
            )
            for label, places in sorted(made.items())
        )

    @property
    def free(self) -> tuple[ChannelGroup, ...]:
        """The groups that can leave."""
        return tuple(group for group in self.groups if not group.pinned)

    @functools.cached_property
    def pinned(self) -> tuple[Pinned, ...]:
        """What holds channels in place, once a layer and reason."""
        found: dict[tuple[str, str, str], set[int]] = {}
        for pin in self.survey.pins:
            key = pin.path, pin.kind, pin.reason
            found.setdefault(key, set()).update(self.labels[pin.ids].tolist())
        return tuple(Pinned(*key, len(groups)) for key, groups in found.items())

    def stays(self, ids: np.ndarray, gone: np.ndarray) -> np.ndarray:
        """Whether each channel stays.

        Args:
            ids: of channels.
            gone: for each group, whether it leaves.
        """
        return ~gone[self.labels[ids]]

    def emptied(self, gone: np.ndarray) -> tuple[str, np.ndarray] | None:
        """A layer that would lose all channels, by path, and the groups it has."""
        for path, ids in self.survey.made.items():
            if len(ids) and not self.stays(ids, gone).any():
                return path, self.labels[ids]
        return None


def dependencies(
    model: Any,
    *,
    example: Any = None,
    largest: float = LARGEST,
    normalized: bool = False,
) -> Dependencies:
    """Finds which channels of a model stand or fall together.

    One pass over the graph, nested models included. Residual sums, gates and shared
    layers join channels; depthwise convolutions, normalizations and activations hand
    them on; dense layers and convolutions end and begin them. Inputs and outputs of the
    model and layers without a rule pin what they touch.

    Args:
        model: a built Keras model: Sequential, Functional, or subclassed with a `call`
            of layers and `keras.ops`. It is not changed.
        example: a batch of inputs, for models that do not know their input's shape.
        largest: no value anywhere in the model is assumed to exceed this. It bounds
            what weights near zero can do.
        normalized: whether channels that one layer normalizes together, such as
            `LayerNormalization`, may leave. Its moments are then those of the channels
            that stay, so no removal among them is exact.

    Returns:
        `Dependencies`: `groups`, those that are `free`, and what is `pinned` and why.

    Raises:
        ModelError: for a model that is not built, cannot be traced or is transformed.
        ConfigError: unless `largest` is positive.

    Example:
        >>> import keras
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"),
        ...                         keras.layers.Dense(2, name="b")])
        >>> found = dependencies(net)
        >>> [group.made_by for group in found.free]
        [{'a': (0,)}, {'a': (1,)}, {'a': (2,)}]
        >>> [pin.reason for pin in found.pinned]
        ['an input of the model', 'an output of the model']
    """
    checks.positive(largest, name="largest")
    if isinstance(model, keras.layers.Layer) and hosts(model):
        raise ModelError(
            f"{model.name!r} is transformed: its weights are not yet those that layers "
            "see. Take finalize(model), or finalize(model, remove=True), first."
        )
    rules = NORMALIZED_RULES if normalized else RULES
    return Dependencies(Survey(model, rules, example=example, largest=largest))


__all__ = ["ChannelGroup", "Dependencies", "Pin", "Pinned", "dependencies"]
