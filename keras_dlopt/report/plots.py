"""Plots of a report, as PNG without a display."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_dlopt.report.weights import WeightHistogram

BEFORE, AFTER, FAINT = "#9aa4ae", "#0b62c4", "#57606a"
PARTS = ("#0b62c4", "#e08a00", "#2a8a57", "#8250df", "#9aa4ae")
WIDTH = 9.0  # inches, at 120 dots: the width of the page
SMOOTHING = 20  # steps


def training_plot(
    loss: np.ndarray,
    rate: np.ndarray,
    phases: Sequence[tuple[str, int]],
    *,
    steps: np.ndarray | None = None,
    each: int = 1,
) -> bytes:
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
    top.plot(x, loss, color=BEFORE, lw=0.6, alpha=0.6, label=_steps(each))
    top.plot(x, smooth(loss), color=AFTER, lw=1.6, label=_steps(SMOOTHING * each))
    top.set_ylabel("training loss")
    positive = np.asarray(loss)[np.isfinite(loss) & (np.asarray(loss) > 0)]
    if positive.size and not (np.asarray(loss) < 0).any():
        # A logarithm has no place for losses below zero.
        top.set_yscale("log")
        top.set_ylim(bottom=max(float(np.quantile(positive, 0.005)), 1e-6) * 0.7)
    top.legend(frameon=False, fontsize=8, loc="upper right")
    bottom.plot(x, rate, color=AFTER, lw=1.6)
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
            fontsize=8,
            color=FAINT,
        )
    top.set_xlim(0, end)
    return png(figure)


def _steps(count: int) -> str:
    return "each step" if count == 1 else f"mean of {count} steps"


def layers_plot(
    names: Sequence[str], parts: dict[str, Sequence[float]], plain: Sequence[int]
) -> bytes:
    """Bytes of each layer in the file, by what they hold, and the ratio to plain.

    Args:
        names: the layers, in order.
        parts: what the bytes hold -> bytes of each layer.
        plain: bytes of each layer as plain numbers.
    """
    figure, axis = drawing(0.9 + 0.27 * len(names))
    y, left = np.arange(len(names)), np.zeros(len(names))
    for color, (part, sizes) in zip(PARTS, parts.items(), strict=False):
        axis.barh(y, sizes, left=left, height=0.72, color=color, label=part)
        left += np.asarray(sizes, float)
    for at, total, before in zip(y, left, plain, strict=True):
        text = f"  {total:,.0f}"
        if before and total:
            text = f"  {before:,} to {total:,.0f}  ({before / total:.1f}x)"
        axis.text(total, at, text, va="center", size=8)
    axis.set_yticks(y, names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("bytes in the compressed file")
    axis.set_xlim(0, max(left.max(initial=1), 1) * 1.32)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return png(figure)


def histogram_plot(
    found: Sequence[WeightHistogram], *, names: tuple[str, str] = ("before", "after")
) -> bytes:
    """Histograms of weights of two models, one panel a weight.

    Zeros of the compressed weight are left out of its bars and named in the panel: they
    would hide the rest.
    """
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure, axes = drawing(1.7 * rows + 0.5, rows, columns, squeeze=False)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for axis, one in zip(axes.flat, found, strict=False):
        edges = np.linspace(one.low, one.high, len(one.before) + 1)
        axis.stairs(one.before, edges, fill=True, color=BEFORE, label=names[0])
        axis.stairs(
            one.after, edges, fill=True, color=AFTER, alpha=0.85, label=names[1]
        )
        axis.set_title(f"{one.path}  ({one.zeros:.0%} zeros)", fontsize=8)
        axis.set_yticks([])
        axis.locator_params(axis="x", nbins=5)
        axis.tick_params(labelsize=7)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )
    return png(figure)


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


def drawing(height: float, *grid: int, **kwargs: Any) -> tuple[Any, Any]:
    """A figure of the page's width, and its axes as `subplots` gives them."""
    made = canvas(height)
    return made, made.subplots(*grid, **kwargs)


def canvas(height: float) -> Any:
    """A figure of the page's width without axes."""
    # Figure, not pyplot: no global state, no window, whatever the backend is set to.
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), dpi=120, layout="constrained")


def png(figure: Any) -> bytes:
    """The figure's file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(buffer)
    return buffer.getvalue()
