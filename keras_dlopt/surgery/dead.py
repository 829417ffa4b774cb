"""Exact removal: channels that carry nothing, or a constant that a bias can hold."""

import dataclasses
from collections import Counter
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.surgery.carrying import carry_optimizer
from keras_dlopt.surgery.dependencies import LARGEST, Dependencies, dependencies
from keras_dlopt.surgery.removal import without
from keras_dlopt.surgery.report import RemovalReport, report_on
from keras_dlopt.surgery.survey import Read

NEGLIGIBLE = 1e-12


def remove_dead(
    model: keras.Model,
    *,
    example: Any = None,
    largest: float = LARGEST,
    negligible: float = NEGLIGIBLE,
    ignore_padding: bool = False,
    optimizer_state: bool = False,
) -> tuple[keras.Model, RemovalReport]:
    """The same function without the channels that do nothing.

    A group of channels leaves if at every layer that reads it the channel is zero for
    all inputs, or a constant, which is added to the bias there, or meets only weights
    of zero, or only outputs that leave as well. That is decided by interval bounds from
    the weights alone, so no data is needed. Constants in front of padding stay: zeros
    beside them are no constant.

    Args:
        model: a built Keras model: Sequential, Functional, nested, or subclassed with a
            `call` of layers and `keras.ops`; it is not changed.
        example: a batch of inputs, for models that do not know their input's shape.
        largest: no value anywhere in the model is assumed to exceed this.
        negligible: values and changes of at most this count as none. 0 demands proof
            that the function stays the same in real numbers.
        ignore_padding: whether constants in front of padding leave too. The function
            then changes where a kernel reaches over the border: the bias holds what
            the constant amounts to inside. `RemovalReport.uneven` names these layers.
        optimizer_state: whether the optimizer's state of what survives goes over:
            moments, averages of weights, the count of steps.

    Returns:
        A new model, an ordinary one with the same layer names and compiled state; and a
        report of what left, why, and what is held in place.

    Raises:
        ModelError: for a model that is not built, cannot be traced or built anew; with
            `optimizer_state`, if there is no state or it cannot be cut.
        ConfigError: unless the bounds are numbers of at least 0.

    Example:
        >>> net = keras.Sequential([keras.Input((4,)),
        ...     keras.layers.Dense(3, activation="relu", name="a"),
        ...     keras.layers.Dense(2, name="b")])
        >>> weights = net.get_layer("a").get_weights()
        >>> weights[0][:, 1] = 0
        >>> net.get_layer("a").set_weights(weights)
        >>> small, report = remove_dead(net)
        >>> small.get_layer("a").units, report.channels_removed
        (2, 1)
    """
    checks.number(negligible, name="negligible", least=0)
    found = dependencies(model, example=example, largest=largest)
    dead = DeadChannels(found, negligible, ignore_padding=ignore_padding)
    small = without(found, dead.gone, dead.biases())
    if optimizer_state:
        carry_optimizer(model, small, found, dead.gone, dead.biases())
    report = report_on(model, small, found, dead.gone, dead.reasons())
    return small, dataclasses.replace(report, uneven=dead.uneven())


@dataclasses.dataclass(frozen=True, eq=False)
class _Verdict:
    """What one read says of the channels it takes, one entry a channel."""

    read: Read
    into: np.ndarray  # groups of what is read
    out: np.ndarray  # groups of what is made, a row for each group of the layer
    touches: np.ndarray  # (groups, inputs, outputs): whether it makes a difference
    fixed: np.ndarray  # constant here, and the bias can hold it


class DeadChannels:
    """Which groups of channels can leave without changing the function.

    Args:
        found: the dependencies of a model.
        negligible: values and changes of at most this count as none.
        ignore_padding: whether a constant in front of padding counts as one.

    Attributes:
        gone: for each group, whether it can leave.
    """

    def __init__(
        self,
        found: Dependencies,
        negligible: float = NEGLIGIBLE,
        *,
        ignore_padding: bool = False,
    ):
        self.found, self.negligible = found, negligible
        self.ignore_padding = ignore_padding
        self._verdicts = [self._verdict(read) for read in found.survey.reads]
        self.gone = self._leaving()

    def _verdict(self, read: Read) -> _Verdict:
        facts, labels = read.facts, self.found.labels
        most = np.maximum(np.abs(facts.low), np.abs(facts.high))
        weight = np.abs(read.kernel).max(axis=0).astype("float64")
        reach = weight * most.reshape(*weight.shape[:2], 1)
        zero = facts.zero(self.negligible)
        even = self.ignore_padding or not read.padded
        holds = read.bias is not None and even and read.place.calls == 1
        fixed = zero | (facts.fixed(self.negligible) & holds)
        into = labels[facts.ids]
        return _Verdict(read, into, labels[read.out], reach > self.negligible, fixed)

    def _leaving(self) -> np.ndarray:
        """Grows the set until nothing new can leave."""
        held = self.found.held.copy()
        gone = np.zeros(self.found.count, bool)
        while True:
            bad, seen = held.copy(), np.zeros_like(held)
            for verdict in self._verdicts:
                fine = verdict.fixed | self._unread(verdict, gone)
                seen[verdict.into] = True
                bad[verdict.into[~fine]] = True
            new = gone | (seen & ~bad)
            while (empty := self.found.emptied(new)) is not None:
                new[empty[1][0]] = False
                held[empty[1][0]] = True
            new &= ~held
            if (new == gone).all():
                return gone
            gone = new

    def _unread(self, verdict: _Verdict, gone: np.ndarray) -> np.ndarray:
        left = ~gone[verdict.out][:, None, :]
        return ~(verdict.touches & left).any(axis=2).ravel()

    def biases(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """What the constants that leave amount to in the layers that read them.

        Returns:
            id of a layer -> ids of its outputs, and what to add to the bias of each.
        """
        found = {}
        for verdict in self._verdicts:
            values = self._constants(verdict)
            if values.any():
                kernel = verdict.read.kernel.sum(axis=0, dtype="float64")
                rows = values.reshape(kernel.shape[:2])
                added = np.einsum("gio,gi->go", kernel, rows).ravel()
                out = verdict.read.out.ravel()
                found[id(verdict.read.place.operation)] = out, added
        return found

    def _constants(self, verdict: _Verdict) -> np.ndarray:
        """What leaves and is not zero but held by the bias, 0 for all else."""
        facts = verdict.read.facts
        constant = verdict.fixed & ~facts.zero(self.negligible)
        leaves = constant & self.gone[verdict.into]
        return np.where(leaves, (facts.low + facts.high) / 2, 0.0)

    def uneven(self) -> tuple[str, ...]:
        """Paths of layers whose outputs change at the border."""
        reads = [v.read for v in self._verdicts if self._constants(v).any()]
        return tuple(read.place.path for read in reads if read.padded)

    def reasons(self) -> dict[int, str]:
        """Group -> why it can leave: by what it is at the layers that read it."""
        says: dict[int, set[str]] = {}
        for verdict in self._verdicts:
            zero = verdict.read.facts.zero(self.negligible)
            for i in np.flatnonzero(self.gone[verdict.into]):
                why = (
                    "zero" if zero[i] else "constant" if verdict.fixed[i] else "unread"
                )
                says.setdefault(int(verdict.into[i]), set()).add(why)
        order = ("unread", "constant", "zero")
        return {g: next(w for w in order if w in why) for g, why in says.items()}

    def counts(self) -> dict[str, int]:
        """Reason -> how many groups leave for it."""
        return dict(Counter(self.reasons().values()))
