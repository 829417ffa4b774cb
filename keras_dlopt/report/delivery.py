"""A float model and the two files made of it: one table, one page, plain data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_dlopt.export import ExportReport
from keras_dlopt.report import pages
from keras_dlopt.report.comparison import plain
from keras_dlopt.report.document import Document, percent, size
from keras_dlopt.report.quality import Changes
from keras_dlopt.report.training import Recording, training_figure
from keras_dlopt.report.variants import Variant
from keras_dlopt.report.weights import WeightHistogram
from keras_dlopt.tables import Table


@dataclasses.dataclass(frozen=True)
class Delivery:
    """Everything that was measured of a model on its way into files.

    Attributes:
        parent: the float model.
        compressed: the model read back from the compressed file.
        int8: the LiteRT file.
        compressed_changes: from the float model to the compressed.
        int8_changes: from the float model to the LiteRT file.
        fresh_equal: whether a fresh process predicted the same to the last bit.
        export: what the export checked.
        histograms: of weights, float and compressed.
        traces: of the trainings.
    """

    parent: Variant
    compressed: Variant
    int8: Variant
    compressed_changes: Changes
    int8_changes: Changes
    fresh_equal: bool
    export: ExportReport
    histograms: tuple[WeightHistogram, ...]
    traces: tuple[Recording, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data: dict[str, Any] = plain(vars(self))
        data["export"].pop("path")
        # The account of the quantized weights in this package's format; the file is
        # another one.
        data["int8"].pop("ledger")
        return data

    def table(self, note: str = "") -> Table:
        """The three side by side; `note` says what the test examples are of."""
        examples = self.parent.quality.examples
        others = [
            (self.compressed, self.compressed_changes),
            (self.int8, self.int8_changes),
        ]
        note = (
            f"On {size(examples)} test examples{note}: one example is "
            f"{percent(1 / examples)}. Float is the plain weights, 4 bytes each; the "
            "other two are whole files, with the architecture. Through gzip: for int8 "
            "the file, for the others the plain weights. Churn: labels that differ "
            "from the float model's. The entropy bound counts positions and values of "
            "the weights, one by one."
        )
        return pages.variants_table(self.parent, others, note=note)

    def checks(self) -> Table:
        """What was verified on the files."""
        agree, codes = self.export.agreement, size(self.export.codes)
        same = "equal to the last bit" if self.fresh_equal else "DIFFERENT"
        rows = [
            ("compressed file, read in a fresh process", f"predictions {same}"),
            ("int8 file, weight codes as trained", f"{codes} of {codes}"),
            ("int8 file, activation ranges as trained", str(self.export.ranges)),
        ]
        if agree is not None:
            told = f"{percent(agree.top1)}, {percent(agree.top1_clear)} if not a tie"
            rows.append(("int8 file, label as in Keras", told))
        return Table("Checked", ("", "found"), tuple(rows))

    def document(
        self,
        title: str,
        summary: str,
        *,
        phases: Mapping[str, Mapping[str, int]] | None = None,
        curves: str = "",
        footer: str = "",
    ) -> Document:
        """The page.

        Args:
            title: of the page.
            summary: how the models came about, a sentence that the figures end.
            phases: as for `training_figure`.
            curves: what the curves of the trainings show.
            footer: how it was made.
        """
        before, after = self.parent, self.compressed
        figures = (
            f"{size(before.ledger.plain_bytes)} bytes became "
            f"{size(after.ledger.file_bytes)} ({after.ledger.ratio:.1f}x), and "
            f"accuracy went from {percent(before.quality.accuracy)} to "
            f"{percent(after.quality.accuracy)}."
        )
        blocks = (
            self.table(),
            self.checks(),
            training_figure(self.traces, phases=phases, note=curves),
            pages.bytes_figure(after.ledger),
            pages.histogram_figure(self.histograms),
        )
        return Document(title, f"{summary}: {figures}", blocks, footer)
