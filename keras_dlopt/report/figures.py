"""Figures of a comparison: reliability, changed examples, corruptions, saliency."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from keras_dlopt.drawing import (
    AFTER,
    BEFORE,
    FAINT,
    GREEN,
    RED,
    SMALL,
    drawing,
    finished,
    literal,
    shortened,
)
from keras_dlopt.report.document import Figure, percent
from keras_dlopt.report.flips import Flip
from keras_dlopt.report.plots import below
from keras_dlopt.report.quality import BINS, Reliability
from keras_dlopt.report.robustness import Corrupted
from keras_dlopt.report.saliency import Saliency
from keras_dlopt.tables import Table


class Tried(Protocol):
    """One way that was tried; `auto.Trial` is."""

    @property
    def method(self) -> str:
        """What was done."""

    @property
    def bytes(self) -> int:
        """Of the file."""

    @property
    def accuracy(self) -> float | None:
        """On validation examples; None for models that do not classify."""

    @property
    def loss(self) -> float:
        """On validation examples."""


def reliability_figure(found: Sequence[tuple[str, Reliability]]) -> Figure:
    """How often two models are right, by how sure they are."""
    figure, axes = drawing(3.4, 1, 2, sharey=True)
    edges = np.linspace(0, 1, BINS + 1)
    for axis, color, (name, one) in zip(axes, (BEFORE, AFTER), found, strict=True):
        count = np.asarray(one.examples)
        kept = count > 0
        axis.bar(
            (edges[:-1] + edges[1:])[kept] / 2,
            np.asarray(one.accuracy)[kept],
            1 / BINS * 0.9,
            color=color,
        )
        axis.plot([0, 1], [0, 1], color=FAINT, lw=1, ls="--")
        sure = np.asarray(one.confidence)[kept]
        axis.plot(sure, sure, "o", ms=3, color=FAINT)
        error = f"calibration error {percent(one.error)}"
        axis.set_title(f"{literal(shortened(name))}\n{error}", fontsize=SMALL)
        axis.set_xlabel("confidence", fontsize=SMALL)
        axis.tick_params(labelsize=SMALL)
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1.02)
    axes[0].set_ylabel("share that is right", fontsize=SMALL)
    return Figure(
        "Reliability",
        finished(figure),
        "Bars: the share of right labels by the confidence in them, in 15 bins; "
        "points: the mean confidence of a bin. A bar below the line is too sure, one "
        "above it not sure enough. The error is the mean gap, weighted by examples.",
    )


def flips_block(
    found: Sequence[Flip], count: int, class_names: Sequence[str] = ()
) -> Figure | Table:
    """The examples whose label changed, as pictures if they are images.

    Args:
        found: those to show.
        count: how many changed.
        class_names: of the outputs.
    """
    title = "Examples whose label changed"
    note = f"{len(found)} of {count}: newly wrong first, the surest first."
    if any(one.image is None for one in found):
        rows = [
            (
                str(one.index),
                *(_named(n, class_names) for n in (one.label, one.before, one.after)),
                percent(one.confidence, 1),
            )
            for one in found
        ]
        columns = ("example", "right", "before", "after", "confidence after")
        return Table(title, columns, tuple(rows), note=note)
    columns_ = min(6, max(len(found), 4))
    lines = -(-len(found) // columns_)
    figure, axes = drawing(1.75 * lines, lines, columns_, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, one in zip(axes.flat, found, strict=False):
        image = np.asarray(one.image)
        axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray")
        texts = [
            literal(shortened(_named(n, class_names), 12))
            for n in (one.before, one.after, one.label)
        ]
        color = GREEN if one.after == one.label else RED
        label = f"{texts[0]} → {texts[1]}\nright: {texts[2]}"
        axis.set_title(label, fontsize=SMALL, color=color)
    note += " Red: the new label is wrong; green: it is right."
    return Figure(title, finished(figure), note)


def _named(number: int, class_names: Sequence[str]) -> str:
    return class_names[number] if class_names else str(number)


def robustness_figure(found: Sequence[Corrupted], names: tuple[str, str]) -> Figure:
    """Accuracy of two models by corruption and severity."""
    kinds = list(dict.fromkeys(one.corruption for one in found))
    lines = -(-len(kinds) // 3)
    figure, axes = drawing(
        1.7 * lines + 0.4, lines, 3, sharey=True, sharex=True, squeeze=False
    )
    for axis, kind in zip(axes.flat, kinds, strict=False):
        rows = [one for one in found if one.corruption == kind]
        x = [one.severity for one in rows]
        y = [one.before for one in rows], [one.after for one in rows]
        axis.plot(x, y[0], "o-", color=BEFORE, ms=4, lw=1.4, label=names[0])
        axis.plot(x, y[1], "o-", color=AFTER, ms=4, lw=1.4, label=names[1])
        axis.set_title(kind, fontsize=SMALL)
        axis.set_xticks(x)
        axis.tick_params(labelsize=SMALL)
        axis.set_ylim(0, 1.05)
    for axis in axes[-1]:
        axis.set_xlabel("severity", fontsize=SMALL)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy", fontsize=SMALL)
    below(figure, axes.flat[0])
    worst = min(found, key=lambda one: one.after - one.before)
    return Figure(
        "Robustness",
        finished(figure),
        f"Accuracy on {found[0].examples:,} images, corrupted in common ways. Most is "
        f"lost under {worst.corruption} of severity {worst.severity}: "
        f"{percent(worst.before)} became {percent(worst.after)}, and "
        f"{percent(worst.churn)} of the labels differ.",
    )


def saliency_figure(found: Saliency, names: tuple[str, str]) -> Figure | Table:
    """What two models look at, and how far they agree."""
    told = (
        f"Rank correlation of the two maps: {found.agreement:.3f} on average over "
        f"{found.examples} examples, {found.lowest:.3f} at least; 1 is the same order "
        "of importance, 0 none in common."
    )
    if not len(found.maps):
        rows = (("mean", f"{found.agreement:.3f}"), ("least", f"{found.lowest:.3f}"))
        return Table("Saliency", ("rank correlation", ""), rows, note=told)
    titles = ("input", *names)
    figure, axes = drawing(1.75 * 3, 3, len(found.maps), squeeze=False)
    for column, maps in enumerate(found.maps):
        for row, one in enumerate(maps):
            axis = axes[row, column]
            axis.imshow(one, cmap="gray" if row == 0 else "magma")
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                label = literal(shortened(titles[row], 14))
                axis.set_ylabel(label, fontsize=SMALL)
    note = "Bright: where a change of the input moves the score of its label most. "
    return Figure("Saliency", finished(figure), note + told)


def pareto_figure(trials: Sequence[Tried]) -> Figure:
    """Bytes and quality of all that was tried, and the edge that nothing beats.

    Args:
        trials: such as `compress(...).trials`; the first is the chosen one.
    """
    classifies = all(one.accuracy is not None for one in trials)
    points = [
        (one.bytes, one.accuracy if classifies else one.loss, one.method)
        for one in trials
    ]
    sign = 1 if classifies else -1
    figure, axis = drawing(3.6)
    edge: list[tuple[float, float]] = []
    for size, value, _ in sorted(points, key=lambda p: (p[0], -sign * (p[1] or 0))):
        if not edge or sign * (value or 0) > sign * edge[-1][1]:
            edge.append((size, value or 0))
    axis.plot(
        *zip(*edge, strict=True), color=FAINT, lw=1, ls="--", drawstyle="steps-post"
    )
    for number, (size, value, method) in enumerate(points):
        axis.plot([size], [value], "o", ms=7, color=AFTER if number == 0 else BEFORE)
        axis.annotate(
            literal(shortened(method, 26)),
            (size, value),
            xytext=(6, -3),
            textcoords="offset points",
            fontsize=SMALL,
        )
    axis.set_xlabel("bytes of the file", fontsize=SMALL)
    label = "validation accuracy" if classifies else "validation loss"
    axis.set_ylabel(label, fontsize=SMALL)
    axis.tick_params(labelsize=SMALL)
    axis.margins(x=0.25, y=0.15)
    return Figure(
        "What was tried",
        finished(figure),
        f"{len(trials)} trials, the chosen one in color. Nothing that was tried lies "
        f"{'above' if classifies else 'below'} the dashed line.",
    )


def comparison_blocks(found: Any) -> list[Figure | Table]:
    """What a `Comparison` has of these."""
    names = found.before.name, found.after.name
    blocks: list[Figure | Table] = []
    if found.flips:
        count = round(found.changes.churn * found.after.quality.examples)
        blocks.append(flips_block(found.flips, count, found.class_names))
    if found.reliability:
        one, two = found.reliability
        blocks.append(reliability_figure([(names[0], one), (names[1], two)]))
    if found.robustness:
        blocks.append(robustness_figure(found.robustness, names))
    if found.saliency is not None:
        blocks.append(saliency_figure(found.saliency, names))
    return blocks
