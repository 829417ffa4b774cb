"""From measurements to tables and figures: what is said, and in which words."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from keras_dlopt.measure.latency import Latency
from keras_dlopt.report import plots
from keras_dlopt.report.document import (
    Card,
    Document,
    Figure,
    percent,
    points,
    size,
)
from keras_dlopt.report.figures import comparison_blocks
from keras_dlopt.report.provenance import provenance_table
from keras_dlopt.report.quality import Changes
from keras_dlopt.report.regression import Differences
from keras_dlopt.report.variants import Variant
from keras_dlopt.report.weights import WeightHistogram
from keras_dlopt.storage import Ledger
from keras_dlopt.storage.ledger import TensorRow
from keras_dlopt.tables import Table

PLAIN = ("raw", "planes", "bytes")  # ways of storing weights without a codebook
MANY = 24  # layers in one figure, classes in one table


def comparison(found: Any, more: Sequence[Table | Figure] = ()) -> Document:
    """The page about two models: a `Comparison`; `more` is shown beside the rest."""
    before, after, changes = found.before, found.after, found.changes
    summary = (
        f"{size(before.ledger.plain_bytes)} bytes of plain weights became a file of "
        f"{size(after.ledger.file_bytes)} bytes; {_told(found)}"
    )
    blocks: list[Table | Figure] = [
        comparison_table(before, after, changes, found.class_names, found.task)
    ]
    if isinstance(changes, Changes):
        blocks.append(class_table(before, after, found.class_names))
    blocks.append(bytes_figure(after.ledger, whose=after.name))
    blocks += comparison_blocks(found)
    if found.histograms:
        names = before.name, after.name
        blocks.append(histogram_figure(found.histograms, names=names))
    if found.latency:
        blocks.append(latency_table(found.latency))
    blocks += more
    if found.made:
        blocks.append(provenance_table(found.made))
    return Document(
        title=f"{before.name} and {after.name}",
        summary=summary,
        blocks=tuple(blocks),
        cards=tuple(_cards(found)),
    )


def _cards(found: Any) -> Iterator[Card]:
    """The figures to see first."""
    one, two = found.before.quality, found.after.quality
    account = found.after.ledger
    yield Card(
        "smaller",
        f"{account.ratio:.1f}x",
        f"{size(account.plain_bytes)} to {size(account.file_bytes)} bytes",
    )
    if isinstance(found.changes, Changes):
        yield Card("accuracy", percent(two.accuracy), f"was {percent(one.accuracy)}")
        yield Card("labels changed", percent(found.changes.churn), "churn")
        yield Card(
            "calibration error",
            percent(two.calibration_error),
            f"was {percent(one.calibration_error)}",
        )
    else:
        yield Card(
            "root mean squared error",
            f"{two.root_mean_squared_error:.4g}",
            f"was {one.root_mean_squared_error:.4g}",
        )
        yield Card("mean change of an output", f"{found.changes.mean_difference:.3g}")
    yield Card(
        "zeros in kernels",
        percent(found.after.sparsity, 1),
        f"was {percent(found.before.sparsity, 1)}",
    )
    times = [found.latency.get(v.name) for v in (found.before, found.after)]
    if times[0] and times[1]:
        yield Card(
            "time of a call",
            f"{times[1].median / times[0].median:.2f}x",
            f"{1e3 * times[0].median:.2f} to {1e3 * times[1].median:.2f} ms",
        )


def _told(found: Any) -> str:
    one, two, changes = found.before.quality, found.after.quality, found.changes
    count = _counted(two.examples, found.task)
    if isinstance(changes, Changes):
        return (
            f"accuracy went from {percent(one.accuracy)} to {percent(two.accuracy)} "
            f"on {count}, and {percent(changes.churn)} of the labels changed."
        )
    return (
        f"the root of the mean squared error went from "
        f"{one.root_mean_squared_error:.6g} to {two.root_mean_squared_error:.6g} on "
        f"{count}, and the outputs changed by {changes.mean_difference:.3g} "
        "on average."
    )


def _counted(number: int, task: str) -> str:
    """What was judged, in words."""
    words = {"segmentation": "places of maps", "multi-label": "decisions"}
    return f"{size(number)} {words.get(task, 'examples')}"


def _changed(
    changes: Changes | Differences, class_names: Sequence[str]
) -> list[tuple[str, ...]]:
    if isinstance(changes, Differences):
        return [
            ("mean change of an output", "", f"{changes.mean_difference:.6g}"),
            ("largest change of an output", "", f"{changes.largest_difference:.6g}"),
            ("examples with a larger error", "", percent(changes.worse)),
        ]
    worst = _named(changes.worst_class, class_names)
    both = f"{changes.newly_wrong}, {changes.newly_right}"
    return [
        ("labels that changed (churn)", "", percent(changes.churn)),
        ("newly wrong, newly right", "", both),
        (f"worst class ({worst})", "", points(changes.worst_class_change)),
    ]


def _named(number: int, class_names: Sequence[str]) -> str:
    return class_names[number] if class_names else str(number)


def comparison_table(
    before: Variant,
    after: Variant,
    changes: Changes | Differences,
    class_names: Sequence[str] = (),
    task: str = "classification",
) -> Table:
    """Every figure before and after."""
    both = (before, after)
    accounts = [v.ledger for v in both]
    rows = (
        *_rows(both, *(_FIRST if isinstance(changes, Changes) else _ERRORS)),
        *_changed(changes, class_names),
        *_rows(both, *(_LATER if isinstance(changes, Changes) else ())),
        *((name, *(f"{v.metrics[name]:.6g}" for v in both)) for name in before.metrics),
        *_rows(both, "sparsity of kernels"),
        ("bytes, plain", *(size(a.plain_bytes) for a in accounts)),
        ("bytes, gzip of plain", *(size(a.gzip_bytes) for a in accounts)),
        ("bytes, zstd of plain", *(size(a.zstd_bytes) for a in accounts)),
        ("bytes, compressed file", *(size(a.file_bytes) for a in accounts)),
        ("entropy bound of its weights", *(bound(a) for a in accounts)),
        ("bits per weight", *(f"{a.bits_per_weight:.2f}" for a in accounts)),
        ("ratio to plain", *(f"{a.ratio:.1f}x" for a in accounts)),
    )
    note = (
        f"On {_counted(after.quality.examples, task)}. The compressed file holds the "
        "architecture too; the entropy bound counts only positions and values of "
        "the weights, coded one by one. Zeros make files smaller, not predictions "
        "faster."
    )
    return Table("Before and after", ("", *(v.name for v in both)), rows, note=note)


def variants_table(
    parent: Variant, others: Sequence[tuple[Variant, Changes]], *, note: str = ""
) -> Table:
    """A float model beside what was made of it, each with its file.

    Args:
        parent: the float model; its plain weights stand for its file.
        others: each with what it does differently from the parent.
        note: what a reader must know.
    """
    made = [v for v, _ in others]
    variants = (parent, *made)
    files = (parent.ledger.plain_bytes, *(v.file_bytes for v in made))
    count = weights(parent)
    bounds = (
        bound(v.ledger) if v.file_bytes == v.ledger.file_bytes else "" for v in made
    )
    accuracy = parent.quality.accuracy
    rows = (
        *_rows(variants, "accuracy", "error"),
        (
            "change of accuracy",
            "",
            *(points(v.quality.accuracy - accuracy) for v in made),
        ),
        ("churn", "", *(percent(c.churn) for _, c in others)),
        ("worst class", "", *(_worst(c) for _, c in others)),
        *_rows(variants, "calibration error", "negative log-likelihood"),
        ("bytes on disk", *(size(n) for n in files)),
        ("through gzip", *(size(v.gzip_bytes) for v in variants)),
        ("ratio", *(f"{files[0] / n:.1f}x" for n in files)),
        *_rows(variants, "sparsity of kernels"),
        ("bits per weight", *(f"{8 * n / count:.2f}" for n in files)),
        ("entropy bound, bytes", "", *bounds),
    )
    title = ", ".join(v.name for v in variants).capitalize()
    return Table(title, ("", *(v.name for v in variants)), rows, note=note)


_FIRST, _LATER = (
    ("accuracy", "error"),
    ("calibration error", "negative log-likelihood"),
)
_ERRORS = {
    "mean absolute error": "mean_absolute_error",
    "root of mean squared error": "root_mean_squared_error",
    "largest error": "largest_error",
    "explained variance (R^2)": "explained",
}
_FIGURES: dict[str, Callable[[Variant], str]] = {
    "accuracy": lambda v: percent(v.quality.accuracy),
    "error": lambda v: percent(v.quality.error),
    "calibration error": lambda v: percent(v.quality.calibration_error),
    "negative log-likelihood": lambda v: f"{v.quality.negative_log_likelihood:.4f}",
    "sparsity of kernels": lambda v: percent(v.sparsity, 1),
}


def _rows(variants: Sequence[Variant], *names: str) -> list[tuple[str, ...]]:
    return [(name, *(_figure(name, v) for v in variants)) for name in names]


def _figure(name: str, variant: Variant) -> str:
    if name in _ERRORS:
        return f"{getattr(variant.quality, _ERRORS[name]):.6g}"
    return _FIGURES[name](variant)


def _worst(change: Changes) -> str:
    if change.worst_class_change >= 0:
        return "none worse"
    return f"{change.worst_class}: {points(change.worst_class_change, 1)}"


def weights(variant: Variant) -> int:
    """How many numbers a model's variables hold."""
    return round(8 * variant.ledger.file_bytes / variant.ledger.bits_per_weight)


def bound(account: Ledger) -> str:
    """The entropy bound in bytes; nothing where weights are stored as plain numbers.

    The bound counts indices into a codebook. For a float model, each weight different,
    the codebook would be the model, and the bound means nothing.
    """
    loose = sum(r.bits for r in account.rows if r.method.split()[-1] in PLAIN)
    return "" if 2 * loose > 8 * account.file_bytes else size(account.entropy_bytes)


def class_table(
    before: Variant, after: Variant, class_names: Sequence[str] = ()
) -> Table:
    """Accuracy by class; with many classes the ones that lost most."""
    pairs = zip(
        before.quality.class_accuracy, after.quality.class_accuracy, strict=True
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
        columns=("class", before.name, after.name, "change"),
        rows=tuple(
            (
                _named(number, class_names),
                percent(one, 1),
                percent(two, 1),
                points(two - one, 1),
            )
            for number, one, two in shown
        ),
        note=note,
    )


def latency_table(times: Mapping[str, Latency]) -> Table:
    """Median times of one call, and their ratio to the first."""
    first = next(iter(times.values())).median
    return Table(
        title="Time of one call",
        columns=("", "ms, median (10 % to 90 %)", "ratio"),
        rows=tuple(
            (name, t.text(), f"{t.median / first:.2f}x") for name, t in times.items()
        ),
        note="Measured in turns in one process; only the ratio carries over.",
    )


def bytes_figure(account: Ledger, *, whose: str = "") -> Figure:
    """Where the bytes of a compressed file go, layer by layer; `whose` names it."""
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
    drawn = plots.layers_plot(
        names, {k: [c[i] for c in columns] for i, k in enumerate(kinds)}, sizes
    )
    note = (
        f"The {size(account.file_bytes)} bytes of the compressed file by layer. Beside "
        "each bar: bytes of the plain weights, bytes in the file, and their ratio."
    )
    title = f"Bytes by layer: {whose}" if whose else "Bytes by layer"
    return Figure(title, drawn, note)


def _plain_bytes(row: TensorRow) -> int:
    count = math.prod(row.shape)
    bits = int("".join(c for c in row.dtype if c.isdigit()) or 8)
    return count * bits // 8


def histogram_figure(
    found: tuple[WeightHistogram, ...], *, names: tuple[str, str] = ("before", "after")
) -> Figure:
    """Weights of two models, which are called by these names."""
    return Figure(
        f"Weights {names[0]} and {names[1]}",
        plots.histogram_plot(found, names=names),
        f"The {len(found)} largest weights that both have. Exact zeros of "
        f"{names[1]!r} are not drawn; their share stands above each panel.",
    )
