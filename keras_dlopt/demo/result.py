"""What the demo found out, as data and as pages."""

import dataclasses
import itertools
from typing import Any

import numpy as np

from keras_dlopt.demo.settings import Plan, Settings
from keras_dlopt.demo.training import Trace
from keras_dlopt.export import ExportReport
from keras_dlopt.report import pages, plots
from keras_dlopt.report.comparison import Variant, plain
from keras_dlopt.report.document import Document, Figure, Table, percent, points, size
from keras_dlopt.report.quality import Changes
from keras_dlopt.report.weights import WeightHistogram


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that the demo measured.

    Attributes:
        settings: what was asked.
        plan: what that meant.
        data: what the data set holds, in words.
        versions: package -> version.
        seconds: time of the whole run.
        parent: the float model.
        compressed: the model read back from the compressed file.
        int8: the LiteRT file.
        compressed_changes: from the float model to the compressed.
        int8_changes: from the float model to the LiteRT file.
        fresh_equal: whether a fresh process predicted the same to the last bit.
        export: what the export checked.
        int8_gzip_bytes: of the LiteRT file.
        histograms: of weights, float and compressed.
        traces: of the three trainings.
    """

    settings: Settings
    plan: Plan
    data: str
    versions: dict[str, str]
    seconds: float
    parent: Variant
    compressed: Variant
    int8: Variant
    compressed_changes: Changes
    int8_changes: Changes
    fresh_equal: bool
    export: ExportReport
    int8_gzip_bytes: int
    histograms: tuple[WeightHistogram, ...]
    traces: tuple[Trace, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("parent", "compressed", "int8")
        }
        data = {k: _dict(v) for k, v in data.items()}
        data["settings"]["out"] = str(self.settings.out)
        data["export"].pop("path")
        for name in ("parent", "compressed", "int8"):
            variant = getattr(self, name)
            data[name] = dataclasses.asdict(variant)
            data[name]["ledger"] = variant.ledger.to_dict()
        # The account of the quantized weights in this package's format; the file is
        # another one.
        data["int8"].pop("ledger")
        data["int8"]["file_bytes"] = self.export.size
        return plain(data)

    def table(self) -> Table:
        """The one table."""
        a, b, c = self.parent, self.compressed, self.int8
        plain_bytes = a.ledger.plain_bytes
        changed = (None, self.compressed_changes, self.int8_changes)
        variants = (a, b, c)
        files = (plain_bytes, b.ledger.file_bytes, self.export.size)
        weights = self._weights()
        rows = (
            _row("accuracy", *(percent(v.quality.accuracy) for v in variants)),
            _row("error", *(percent(v.quality.error) for v in variants)),
            _row("change of accuracy", "", *(self._change(v) for v in (b, c))),
            _row("churn", *(percent(x.churn) if x else "" for x in changed)),
            _row("worst class", *(_worst(x) for x in changed)),
            _row(
                "calibration error",
                *(percent(v.quality.calibration_error) for v in variants),
            ),
            _row(
                "negative log-likelihood",
                *(f"{v.quality.negative_log_likelihood:.4f}" for v in variants),
            ),
            _row("bytes on disk", *(size(n) for n in files)),
            _row(
                "through gzip",
                size(a.ledger.gzip_bytes),
                size(b.ledger.gzip_bytes),
                size(self.int8_gzip_bytes),
            ),
            _row("ratio", *(f"{plain_bytes / n:.1f}x" for n in files)),
            _row("sparsity of kernels", *(percent(v.sparsity, 1) for v in variants)),
            _row("bits per weight", *(f"{8 * n / weights:.2f}" for n in files)),
            _row("entropy bound, bytes", "", pages.bound(b.ledger), ""),
        )
        return Table(
            title="Float, compressed, int8",
            columns=("", a.name, b.name, c.name),
            rows=rows,
            note=self._note(),
        )

    def _change(self, variant: Variant) -> str:
        return points(variant.quality.accuracy - self.parent.quality.accuracy)

    def _note(self) -> str:
        examples = self.parent.quality.examples
        return (
            f"On {size(examples)} test examples of {self.settings.data}, one run with "
            f"seed {self.settings.seed}: one example is {percent(1 / examples)}. Float "
            "is the plain weights, 4 bytes each; the other two are whole files, with "
            "the architecture. Through gzip: for int8 the file, for the others the "
            "plain weights. Churn: labels that differ from the float model's. The "
            "entropy bound counts positions and values of the weights, one by one."
        )

    def checks(self) -> Table:
        """What was verified on the files."""
        agree = self.export.agreement
        rows = [
            (
                "compressed file, read in a fresh process",
                "predictions equal to the last bit"
                if self.fresh_equal
                else "predictions DIFFER",
            ),
            (
                "int8 file, weight codes as trained",
                f"{size(self.export.codes)} of {size(self.export.codes)}",
            ),
            ("int8 file, activation ranges as trained", str(self.export.ranges)),
        ]
        if agree is not None:
            rows.append(
                (
                    "int8 file, label as in Keras",
                    f"{percent(agree.top1)}, {percent(agree.top1_clear)} if not a tie",
                )
            )
        return Table("Checked", ("", "found"), tuple(rows))

    def document(self) -> Document:
        """The page."""
        ratio = self.compressed.ledger.ratio
        summary = (
            f"A residual network of {size(self._weights())} numbers was trained on "
            f"{self.settings.data} ({self.data}), then pruned to "
            f"{percent(self.plan.sparsity, 0)} zeros, clustered to "
            f"{self.plan.clusters} values a layer and tuned under one recipe: "
            f"{size(self.parent.ledger.plain_bytes)} bytes became "
            f"{size(self.compressed.ledger.file_bytes)} ({ratio:.1f}x), and accuracy "
            f"went from {percent(self.parent.quality.accuracy)} to "
            f"{percent(self.compressed.quality.accuracy)}."
        )
        versions = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        return Document(
            title="keras_dlopt demo",
            summary=summary,
            blocks=(
                self.table(),
                self.checks(),
                self.training_figure(),
                pages.bytes_figure(self.compressed.ledger),
                pages.histogram_figure(self.histograms),
            ),
            footer=f"Seed {self.settings.seed}, {self.seconds:.0f} s. {versions}.",
        )

    def _weights(self) -> int:
        ledger = self.parent.ledger
        return round(8 * ledger.file_bytes / ledger.bits_per_weight)

    def training_figure(self) -> Figure:
        """Loss and learning rate over all steps."""
        starts = itertools.accumulate((len(t.loss) for t in self.traces), initial=0)
        first = dict(zip((t.name for t in self.traces), starts, strict=False))
        begin = first["compressing"]
        phases = (
            ("float training", 0),
            ("pruning", begin),
            ("masks fixed", begin + self.plan.prune_end),
            ("clustered", begin + self.plan.cluster_begin),
            ("int8", first["int8"]),
        )
        return Figure(
            "Loss and learning rate",
            plots.training_plot(
                np.concatenate([t.loss for t in self.traces]),
                np.concatenate([t.rate for t in self.traces]),
                phases,
            ),
            "The float training's rate follows its own loss: it climbs until the loss "
            "rises, then holds, then anneals. The compressed and the int8 model both "
            "start from the float one, with cosine decay.",
        )


def _dict(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, tuple):
        return [_dict(v) for v in value]
    return value


def _row(name: str, *cells: str) -> tuple[str, ...]:
    return (name, *cells)


def _worst(change: Changes | None) -> str:
    if change is None:
        return ""
    if change.worst_class_change >= 0:
        return "none worse"
    return f"{change.worst_class}: {points(change.worst_class_change, 1)}"
