"""From measurements to tables and figures: what is said, and in which words."""

import math
from typing import TYPE_CHECKING

from keras_dlopt.report import plots
from keras_dlopt.report.document import Document, Figure, Table, percent, points, size
from keras_dlopt.report.weights import WeightHistogram
from keras_dlopt.storage import Ledger

if TYPE_CHECKING:
    from keras_dlopt.report.comparison import Comparison

PLAIN = ("raw", "planes")  # ways of storing weights without a codebook
MANY = 24  # layers in one figure, classes in one table


def comparison(c: "Comparison") -> Document:
    """The page for a `Comparison`."""
    summary = (
        f"{size(c.before.ledger.plain_bytes)} bytes of plain weights became a file of "
        f"{size(c.after.ledger.file_bytes)} bytes; accuracy went from "
        f"{percent(c.before.quality.accuracy)} to {percent(c.after.quality.accuracy)} "
        f"on {size(c.after.quality.examples)} examples, and "
        f"{percent(c.changes.churn)} of the labels changed."
    )
    blocks: list[Table | Figure] = [
        comparison_table(c),
        class_table(c),
        bytes_figure(c.after.ledger),
    ]
    if c.histograms:
        blocks.append(histogram_figure(c.histograms))
    if c.latency:
        blocks.append(latency_table(c))
    return Document(
        title=f"{c.before.name} and {c.after.name}",
        summary=summary,
        blocks=tuple(blocks),
    )


def comparison_table(c: "Comparison") -> Table:
    """Every figure of a `Comparison` before and after."""
    a, b = c.before, c.after
    worst = c.changes.worst_class_change
    rows = (
        ("accuracy", percent(a.quality.accuracy), percent(b.quality.accuracy)),
        ("error", percent(a.quality.error), percent(b.quality.error)),
        ("labels that changed (churn)", "", percent(c.changes.churn)),
        ("newly wrong, newly right", "", _pair(c)),
        (f"worst class ({c.changes.worst_class})", "", points(worst)),
        (
            "calibration error (15 bins)",
            percent(a.quality.calibration_error),
            percent(b.quality.calibration_error),
        ),
        (
            "negative log-likelihood",
            f"{a.quality.negative_log_likelihood:.4f}",
            f"{b.quality.negative_log_likelihood:.4f}",
        ),
        ("sparsity of kernels", percent(a.sparsity, 1), percent(b.sparsity, 1)),
        ("bytes, plain", size(a.ledger.plain_bytes), size(b.ledger.plain_bytes)),
        ("bytes, gzip of plain", size(a.ledger.gzip_bytes), size(b.ledger.gzip_bytes)),
        ("bytes, zstd of plain", size(a.ledger.zstd_bytes), size(b.ledger.zstd_bytes)),
        (
            "bytes, compressed file",
            size(a.ledger.file_bytes),
            size(b.ledger.file_bytes),
        ),
        ("entropy bound of its weights", bound(a.ledger), bound(b.ledger)),
        (
            "bits per weight",
            f"{a.ledger.bits_per_weight:.2f}",
            f"{b.ledger.bits_per_weight:.2f}",
        ),
        ("ratio to plain", f"{a.ledger.ratio:.1f}x", f"{b.ledger.ratio:.1f}x"),
    )
    return Table(
        title="Before and after",
        columns=("", a.name, b.name),
        rows=rows,
        note=(
            f"On {size(b.quality.examples)} examples. The compressed file holds the "
            "architecture too; the entropy bound counts only positions and values of "
            "the weights, coded one by one. Zeros make files smaller, not predictions "
            "faster."
        ),
    )


def bound(account: Ledger) -> str:
    """The entropy bound in bytes; nothing where weights are stored as plain numbers.

    The bound counts indices into a codebook. For a float model, each weight different,
    the codebook would be the model, and the bound means nothing.
    """
    loose = sum(r.bits for r in account.rows if r.method.split()[-1] in PLAIN)
    return "" if 2 * loose > 8 * account.file_bytes else size(account.entropy_bytes)


def _pair(c: "Comparison") -> str:
    return f"{c.changes.newly_wrong}, {c.changes.newly_right}"


def class_table(c: "Comparison") -> Table:
    """Accuracy by class; with many classes the ones that lost most."""
    pairs = zip(
        c.before.quality.class_accuracy, c.after.quality.class_accuracy, strict=True
    )
    found = [
        (number, one, two)
        for number, (one, two) in enumerate(pairs)
        if not math.isnan(one)
    ]
    shown = found
    note = ""
    if len(found) > MANY:
        worst = sorted(found, key=lambda row: row[2] - row[1])[:MANY]
        shown = sorted(worst)
        note = f"The {MANY} of {len(found)} classes that changed most for the worse."
    return Table(
        title="Accuracy by class",
        columns=("class", c.before.name, c.after.name, "change"),
        rows=tuple(
            (str(number), percent(one, 1), percent(two, 1), points(two - one, 1))
            for number, one, two in shown
        ),
        note=note,
    )


def latency_table(c: "Comparison") -> Table:
    """Median times of one call, and their ratio to the first."""
    first = next(iter(c.latency.values())).median
    return Table(
        title="Time of one call",
        columns=("", "median", "ratio"),
        rows=tuple(
            (name, f"{1e3 * t.median:.3f} ms", f"{t.median / first:.2f}x")
            for name, t in c.latency.items()
        ),
        note="Measured in turns in one process; only the ratio carries over.",
    )


def bytes_figure(account: Ledger) -> Figure:
    """Where the bytes of a compressed file go, layer by layer."""
    layers: dict[str, list[float]] = {}
    plain: dict[str, int] = {}
    for row in account.rows:
        name = row.path.rpartition("/")[0] or row.path
        parts = layers.setdefault(name, [0.0, 0.0, 0.0])
        parts[0] += row.positions / 8
        parts[1] += row.values / 8
        parts[2] += (row.codebook + row.tables + row.header) / 8
        plain[name] = plain.get(name, 0) + _plain_bytes(row)
    kept = sorted(layers, key=lambda name: -plain[name])[:MANY]
    rest = [name for name in layers if name not in kept]
    names = [name for name in layers if name in kept]
    columns = [layers[name] for name in names]
    sizes = [plain[name] for name in names]
    if rest:
        names.append(f"{len(rest)} smaller layers")
        columns.append([sum(layers[n][i] for n in rest) for i in range(3)])
        sizes.append(sum(plain[n] for n in rest))
    names.append("architecture, checksum")
    columns.append([0.0, 0.0, account.architecture_bytes + account.container_bytes])
    sizes.append(0)
    kinds = ("where the non-zeros are", "values", "codebooks, tables, headers")
    png = plots.layers_plot(
        names, {k: [c[i] for c in columns] for i, k in enumerate(kinds)}, sizes
    )
    note = (
        f"The {size(account.file_bytes)} bytes of the compressed file by layer. Beside "
        "each bar: bytes of the plain weights, bytes in the file, and their ratio."
    )
    return Figure("Bytes by layer", png, note)


def _plain_bytes(row) -> int:
    count = math.prod(row.shape)
    bits = int("".join(c for c in row.dtype if c.isdigit()) or 8)
    return count * bits // 8


def histogram_figure(found: tuple[WeightHistogram, ...]) -> Figure:
    """Weights before and after."""
    return Figure(
        "Weights before and after",
        plots.histogram_plot(found),
        f"The {len(found)} largest weights. Exact zeros of the compressed weights are "
        "not drawn; their share stands above each panel.",
    )
