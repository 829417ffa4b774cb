"""What the doctor found, as data, and how it is shown."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from keras_dlopt.measure.costs import Costs, LayerCost
from keras_dlopt.report.document import Document, percent, size
from keras_dlopt.report.html import write_html
from keras_dlopt.tables import Table, Tabled

# The order in which kinds are shown, worst first.
KINDS = (
    "not finite",
    "dead channels",
    "constant outputs",
    "duplicate channels",
    "blocks int8",
    "scale below int8",
    "tiny variance",
    "large factor",
    "denormal",
    "foldable",
    "input scaling",
    "outliers",
    "saturated",
    "silent on the data",
    "estimate",
)
ROWS = 8  # places of one kind, and layers, in a table


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that ails a model.

    Attributes:
        kind: one of `KINDS`.
        where: path of the layer or weight.
        text: what is the matter, a sentence or two.
        figures: what was counted or measured, by name.
        remedy: the call that mends it, as Python: `model` is the model, `data` some
            batches of its inputs, `x` and `y` what it is trained on.
    """

    kind: str
    where: str
    text: str
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    remedy: str = ""


@dataclasses.dataclass(frozen=True)
class ActivationRange:
    """Where the outputs of one layer lay on the data.

    Attributes:
        path: of the layer.
        low: the lowest.
        high: the highest.
        usual: the magnitude that one in a thousand exceeds.
    """

    path: str
    low: float
    high: float
    usual: float


@dataclasses.dataclass(frozen=True)
class Examination(Tabled):
    """What the doctor found. `print` shows it as tables.

    Attributes:
        model: its name.
        costs: where parameters, multiply-accumulates and memory are.
        findings: by kind, worst first.
        removable_channels: output channels that `surgery.remove_dead` takes out.
        removable_parameters: parameters that go with them.
        removable_macs: multiply-accumulates that go with them.
        ranges: of the activations on the data, where there were some.
        notes: what could not be looked at, and why.
        seconds: that the examination took.
    """

    model: str
    costs: Costs
    findings: tuple[Finding, ...]
    removable_channels: int = 0
    removable_parameters: int = 0
    removable_macs: int = 0
    ranges: tuple[ActivationRange, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def of_kind(self, kind: str) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(f for f in self.findings if f.kind == kind)

    def tables(self) -> tuple[Table, ...]:
        """What was found, what mends it, and where the costs are."""
        ranges = (self._ranges(),) if self.ranges else ()
        return (self._summary(), *self._found(), self._costs(), *ranges)

    def _ranges(self) -> Table:
        rows = [
            (one.path, *(f"{n:.4g}" for n in (one.low, one.high, one.usual)))
            for one in self.ranges
        ]
        columns = ("layer", "lowest", "highest", "99.9 % below")
        return Table("Activations on the data", columns, tuple(rows))

    def _summary(self) -> Table:
        whole = self.costs
        rows = [
            _share("parameters", whole.parameters, self.removable_parameters),
            _share("MACs", whole.macs, self.removable_macs),
            ("weights in memory, bytes", size(whole.bytes), "", ""),
            (f"peak activations, bytes, at {whole.peak_at}", size(whole.peak), "", ""),
        ]
        note = " ".join(self.notes)
        if whole.uncounted:
            note += f" MACs without those of {', '.join(whole.uncounted[:5])}."
        columns = ("", "now", "removable, exactly", "share")
        return Table(f"{self.model}: examined", columns, tuple(rows), note=note.strip())

    def _found(self) -> Iterable[Table]:
        if not self.findings:
            yield Table("Found", ("",), (("nothing",),), words=True)
            return
        rows = []
        for kind in KINDS:
            found = self.of_kind(kind)
            for one in found[:ROWS]:
                rows.append((kind, one.where, one.text))
            if found[ROWS:]:
                rows.append((kind, f"{len(found) - ROWS} more places", ""))
        yield Table("Found", ("what", "where", ""), tuple(rows), words=True)
        calls: dict[str, list[str]] = {}
        for one in self.findings:
            if one.remedy and one.kind not in calls.setdefault(one.remedy, []):
                calls[one.remedy].append(one.kind)
        mends = tuple((", ".join(kinds), call) for call, kinds in calls.items())
        yield Table("What mends it", ("what", "call"), mends, words=True)

    def _costs(self) -> Table:
        layers = sorted(self.costs.by_layer, key=lambda c: -c.macs - c.parameters)
        kept, rest = layers[:ROWS], layers[ROWS:]
        rows = [self._cost(one.path, [one]) for one in kept]
        if rest:
            rows.append(self._cost(f"{len(rest)} others", rest))
        columns = ("layer", "parameters", "MACs", "share of parameters", "of MACs")
        return Table("Where parameters and MACs are", columns, tuple(rows))

    def _cost(self, name: str, layers: list[LayerCost]) -> tuple[str, ...]:
        parameters = sum(one.parameters for one in layers)
        macs = sum(one.macs for one in layers)
        return (
            name,
            size(parameters),
            size(macs),
            percent(parameters / max(self.costs.parameters, 1), 1),
            percent(macs / max(self.costs.macs, 1), 1),
        )

    def document(self) -> Document:
        """The report, not rendered yet."""
        count = len(self.findings)
        summary = (
            f"{count} findings in {self.seconds:.1f} s. "
            f"{size(self.removable_channels)} channels, "
            f"{size(self.removable_parameters)} of {size(self.costs.parameters)} "
            f"parameters and {size(self.removable_macs)} of {size(self.costs.macs)} "
            "MACs can leave without changing an output."
        )
        return Document(f"{self.model}, examined", summary, self.tables())

    def to_html(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the report as one HTML file that needs nothing else.

        Raises:
            ConfigError: if the file cannot be written.
        """
        return write_html(self.document(), path)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def _share(name: str, whole: int, part: int) -> tuple[str, ...]:
    return (name, size(whole), size(part), percent(part / max(whole, 1), 1))
