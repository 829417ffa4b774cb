"""Plots of a report, as matplotlib figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_dlopt.drawing import (
    AFTER,
    BEFORE,
    FAINT,
    PARTS,
    SMALL,
    drawing,
    finished,
    literal,
    shortened,
)
from keras_dlopt.report.weights import WeightHistogram

SMOOTHING = 20  # steps
POINTS = 3000  # of a curve


def training_plot(
    loss: np.ndarray,
    rate: np.ndarray,
    phases: Sequence[tuple[str, int]],
    *,
    steps: np.ndarray | None = None,
    each: int = 1,
) -> Any:
    """Loss and learning rate over the steps, with the phases named above.

    Args:
        loss: one value a step.
        rate: learning rate of each step.
        phases: name and first step of each phase, in order.
        steps: the step of each value; None counts from 0.
        each: steps that the loss of a value is the mean of.
    """
    figure, (top, bottom) = drawing(
        4.6, 2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 2]}
    )
    x = np.arange(len(loss)) if steps is None else np.asarray(steps)
    # A page has room for so many; a drawing of each of 100,000 steps takes megabytes.
    some = slice(None, None, max(-(-len(x) // POINTS), 1))
    drawn = x[some], np.asarray(loss)[some]
    label = _steps(each) + (f", 1 in {some.step}" if some.step > 1 else "")
    top.plot(*drawn, color=BEFORE, lw=0.6, alpha=0.6, label=label)
    even = x[some], smooth(loss)[some]
    top.plot(*even, color=AFTER, lw=1.6, label=_steps(SMOOTHING * each))
    top.set_ylabel("training loss")
    positive = np.asarray(loss)[np.isfinite(loss) & (np.asarray(loss) > 0)]
    if positive.size and not (np.asarray(loss) < 0).any():
        # A logarithm has no place for losses below zero.
        top.set_yscale("log")
        top.set_ylim(bottom=max(float(np.quantile(positive, 0.005)), 1e-6) * 0.7)
    top.legend(frameon=False, fontsize=SMALL, loc="upper right")
    bottom.plot(x[some], np.asarray(rate)[some], color=AFTER, lw=1.6)
    if (np.asarray(rate) > 0).all():
        bottom.set_yscale("log")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("training step")
    end = int(x[-1]) + 1 if len(x) else 1
    for i, (name, first) in enumerate(phases):
        last = phases[i + 1][1] if i + 1 < len(phases) else end
        for axis in (top, bottom) if i else ():
            axis.axvline(first, color=FAINT, lw=0.8, ls=":")
        top.text(
            (first + last) / 2,
            1.02,
            name,
            transform=top.get_xaxis_transform(),
            ha="center",
            fontsize=SMALL,
            color=FAINT,
        )
    top.set_xlim(0, end)
    return finished(figure)


def _steps(count: int) -> str:
    return "each step" if count == 1 else f"mean of {count} steps"


def layers_plot(
    names: Sequence[str], parts: dict[str, Sequence[float]], plain: Sequence[int]
) -> Any:
    """Bytes of each layer in the file, by what they hold, and the ratio to plain.

    Args:
        names: the layers, in order.
        parts: what the bytes hold -> bytes of each layer.
        plain: bytes of each layer as plain numbers.
    """
    figure, axis = drawing(1.2 + 0.25 * len(names))
    y, left = np.arange(len(names)), np.zeros(len(names))
    for color, (part, sizes) in zip(PARTS, parts.items(), strict=False):
        axis.barh(y, sizes, left=left, height=0.72, color=color, label=part)
        left += np.asarray(sizes, float)
    for at, total, before in zip(y, left, plain, strict=True):
        text = f"{total:,.0f}"
        if before and total:
            text = f"{before:,} to {total:,.0f}, {before / total:.1f}x"
        beside(axis, total, float(at), text)
    axis.set_yticks(y, [literal(shortened(name)) for name in names], fontsize=SMALL)
    axis.set_xlabel("bytes in the compressed file", fontsize=SMALL)
    axis.tick_params(axis="x", labelsize=SMALL)
    axis.locator_params(axis="x", nbins=5)
    # Room for the text beside the longest bar.
    axis.set_xlim(0, max(left.max(initial=1), 1) * 1.65)
    axis.set_ylim(len(names) - 0.4, -0.6)
    below(figure, axis)
    return finished(figure)


def histogram_plot(
    found: Sequence[WeightHistogram], *, names: tuple[str, str] = ("before", "after")
) -> Any:
    """Histograms of weights of two models, one panel a weight.

    Zeros of the compressed weight are left out of its bars and named in the panel: they
    would hide the rest.
    """
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure, axes = drawing(1.55 * rows + 0.4, rows, columns, squeeze=False)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for axis, one in zip(axes.flat, found, strict=False):
        edges = np.linspace(one.low, one.high, len(one.before) + 1)
        axis.stairs(one.before, edges, fill=True, color=BEFORE, label=names[0])
        axis.stairs(
            one.after, edges, fill=True, color=AFTER, alpha=0.85, label=names[1]
        )
        path = literal(shortened(one.path, 26))
        axis.set_title(f"{path}\n{one.zeros:.0%} zeros", fontsize=SMALL)
        axis.set_yticks([])
        axis.locator_params(axis="x", nbins=4)
        axis.tick_params(labelsize=SMALL)
    below(figure, axes.flat[0])
    return finished(figure)


def beside(axis: Any, x: float, y: float, text: str) -> None:
    """Text to the right of the end of a bar."""
    axis.annotate(
        text,
        (x, y),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=SMALL,
    )


def below(figure: Any, axis: Any) -> None:
    """What the colors of an axis mean, in one line below the figure."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        [literal(label) for label in labels],
        loc="outside lower center",
        ncols=len(labels),
        frameon=False,
        fontsize=SMALL,
    )


def smooth(values: np.ndarray, width: int = SMOOTHING) -> np.ndarray:
    """Mean of the last `width` values, of fewer at the start; nan are left out.

    Example:
        >>> smooth(np.array([2.0, 4.0, 6.0]), 2).tolist()
        [2.0, 3.0, 5.0]
    """
    values = np.asarray(values, float)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    low = np.maximum(np.arange(len(values)) + 1 - width, 0)
    high = np.arange(len(values)) + 1
    number = counts[high] - counts[low]
    mean = (sums[high] - sums[low]) / np.maximum(number, 1)
    return np.where(number > 0, mean, np.nan)
