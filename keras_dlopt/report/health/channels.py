"""Channels that carry nothing, a constant, or what another one carries."""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_dlopt.graph.channels import by_output
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.graph.trace import Trace
from keras_dlopt.report.health.findings import Finding
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.surgery.dead import DeadChannels
from keras_dlopt.surgery.dependencies import Dependencies
from keras_dlopt.surgery.duplicates import duplicates
from keras_dlopt.surgery.sizes import Sizes

REMOVE = "small, report = dlopt.surgery.remove_dead(model)"
MERGE = "small, report = dlopt.surgery.merge_duplicates(model)"
TRAIN = "model.fit(x, y)"


@dataclasses.dataclass(frozen=True)
class Removable:
    """What exact removal would take: channels, parameters, multiply-accumulates."""

    channels: int
    parameters: int
    macs: int


def dead(found: Dependencies) -> tuple[list[Finding], Removable]:
    """Channels that `remove_dead` takes, layer by layer, and what goes with them."""
    verdict = DeadChannels(found)
    reasons = verdict.reasons()
    findings, channels = [], 0
    for path, ids in found.survey.made.items():
        labels = found.labels[ids]
        lost = np.flatnonzero(verdict.gone[labels])
        if not len(lost):
            continue
        channels += len(lost)
        why = collections.Counter(reasons.get(int(labels[i]), "zero") for i in lost)
        constant = why.pop("constant", 0)
        if why:
            findings.append(_dead(path, why, len(ids)))
        if constant:
            findings.append(_constant(path, constant, len(ids)))
    return findings, _removable(found, verdict, channels)


def _dead(path: str, why: collections.Counter[str], of: int) -> Finding:
    count = why.total()
    told = {"zero": "are zero where they are read", "unread": "meet only zero weights"}
    parts = [f"{n} {told[reason]}" for reason, n in sorted(why.items())]
    return Finding(
        "dead channels",
        path,
        f"{count} of {of} channels do nothing: {', '.join(parts)}.",
        {"channels": count, "of": of},
        REMOVE,
    )


def _constant(path: str, count: int, of: int) -> Finding:
    return Finding(
        "constant outputs",
        path,
        f"{count} of {of} channels are the same for every input; biases can hold them.",
        {"channels": count, "of": of},
        REMOVE,
    )


def _removable(found: Dependencies, verdict: DeadChannels, channels: int) -> Removable:
    sizes, gone = Sizes(found), verdict.gone
    parameters = sizes.parameters() - sizes.parameters(gone) - _biases(found, verdict)
    return Removable(channels, parameters, sizes.macs() - sizes.macs(gone))


def _biases(found: Dependencies, verdict: DeadChannels) -> int:
    """Biases that layers get which had none, to hold constants."""
    places = {id(p.operation): p for p in found.survey.places.values()}
    count = 0
    for key, (out, _) in verdict.biases().items():
        if not getattr(places[key].operation, "use_bias", True):
            count += int(found.stays(out, verdict.gone).sum())
    return count


def twins(found: Dependencies) -> Iterator[Finding]:
    """Channels that carry what another one of the same layers does."""
    doubles = duplicates(found)
    lost = {drop for _, drop in doubles}
    for path, ids in found.survey.made.items():
        count = int(np.isin(found.labels[ids], list(lost)).sum())
        if count:
            yield Finding(
                "duplicate channels",
                path,
                f"{count} of {len(ids)} channels carry what another one carries.",
                {"channels": count, "of": len(ids)},
                MERGE,
            )


def constant_results(model: Any, graph: Trace) -> Iterator[Finding]:
    """Outputs of the model that no input can move: their weights are all zero."""
    makers = graph.producers()
    ends = {id(makers[t].layer): makers[t] for t in graph.outputs if t in makers}
    for target in weight_targets(model):
        call = ends.get(id(target.layer))
        if call is None or target.name != "kernel":
            continue
        count = int((~by_output(target, to_numpy(target.variable)).any(axis=1)).sum())
        if count:
            yield Finding(
                "constant outputs",
                call.path,
                f"{count} outputs of the model are the same for every input: all their "
                "weights are 0. Training moves them.",
                {"channels": count},
                TRAIN,
            )
