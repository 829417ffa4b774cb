"""A TPU check's figures, drawn."""

from typing import Any

import numpy as np

from keras_dlopt.drawing import FAINT, canvas, finished
from keras_dlopt.tpu import Report
from keras_dlopt.tpu.chips import GIB

PARTS = {
    "arguments": "#0b62c4",
    "temporary": "#e08a00",
    "results": "#2a8a57",
    "code": "#9aa4ae",
}
REFUSED, ROOF = "#c4352b", "#24292f"
LAYERS = 12
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}


def plot(report: Report, path: Any = None) -> Any:
    """Memory against the chip's, roofline, and padding of the layers.

    Args:
        report: of a check.
        path: of the file to write, `.png` or `.svg`; None writes nothing.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    wasteful = [p for p in report.padding if p.advice][:LAYERS]
    heights = [3.6, 0.9 + 0.24 * len(wasteful)][: 2 if wasteful else 1]
    figure = canvas(sum(heights), width=9.0)
    figure.suptitle(
        f"{report.model} on {report.topology.name}, compiled, not run", fontsize=10
    )
    # Apart, so that long names of layers do not squeeze the upper plots.
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    left, right = parts[0, 0].subplots(1, 2)
    _memory(left, report)
    _roofline(right, report)
    if wasteful:
        _padding(parts[1, 0].subplots(), report, wasteful)
    for axis in figure.axes:
        axis.tick_params(labelsize=8, which="both")
    return finished(figure, path)


def _memory(axis: Any, report: Report) -> None:
    """A bar a program, by purpose, and the chip's memory as a line."""
    steps = [s for s in report.steps if s.compiles]
    unit, name = _unit(max((s.memory for s in steps), default=GIB))
    for x, step in enumerate(steps):
        bottom = 0.0
        for part, count in step.parts.items():
            axis.bar(x, count / unit, 0.6, bottom, color=PARTS[part])
            bottom += count / unit
        if not step.parts:
            axis.bar(x, step.memory / unit, 0.6, color=REFUSED)
        share = f"{step.memory / step.available:.1%} of the chip"
        axis.text(x, step.memory / unit, share, ha="center", va="bottom", fontsize=8)
    top = max((s.memory for s in steps), default=0.0) / unit
    room = report.topology.chip.memory / unit
    if room < 4 * top:
        axis.axhline(room, color=ROOF, lw=1, ls="--")
        axis.text(-0.45, room, "the chip's memory", va="bottom", fontsize=8, color=ROOF)
        top = max(top, room)
    axis.set_ylim(0, top * 1.18 or 1)
    axis.set_xlim(-0.5, max(len(steps), 2) - 0.3)
    axis.set_xticks(range(len(steps)), [f"{s.name}\nbatch {s.batch:,}" for s in steps])
    axis.set_ylabel(f"{name} on one device", fontsize=8)
    handles = [_patch(color) for color in PARTS.values()]
    labels = list(PARTS)
    if any(not s.parts for s in steps):
        handles, labels = [*handles, _patch(REFUSED)], [*labels, "refused: too big"]
    axis.legend(handles, labels, frameon=False, fontsize=7, ncols=3, **BELOW)
    axis.set_title("memory", fontsize=9, loc="left")


def _roofline(axis: Any, report: Report) -> None:
    """Where each program lies under the chip's roof."""
    chip = report.topology.chip
    steps = [s for s in report.steps if s.roofline is not None and s.intensity > 0]
    ridge = chip.device_flops / chip.device_memory_rate
    known = [s.intensity for s in steps] or [ridge]
    x = np.geomspace(min(*known, ridge) / 8, max(*known, ridge) * 8, 100)
    limit = np.minimum(chip.device_flops, x * chip.device_memory_rate)
    axis.plot(x, limit / 1e12, color=ROOF, lw=1.4)
    axis.text(ridge, chip.device_flops / 1e12, f"{chip.name}  ", fontsize=8, ha="right")
    for step, color in zip(steps, PARTS.values(), strict=False):
        roof = step.roofline
        assert roof is not None
        reached = step.flops / roof.seconds / 1e12
        label = f"{step.name}, batch {step.batch:,}: {roof.bound}"
        axis.plot([step.intensity], [reached], "o", color=color, label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("operations per byte of memory traffic", fontsize=8)
    axis.set_ylabel("10$^{12}$ operations a second", fontsize=8)
    axis.set_title("roofline estimate: at most this fast", fontsize=9, loc="left")
    axis.grid(alpha=0.25, which="major")
    if steps:
        axis.legend(frameon=False, fontsize=7, **BELOW)


def _padding(axis: Any, report: Report, wasteful: Any) -> None:
    """Share of each layer's multiplications that fill up blocks."""
    y = np.arange(len(wasteful))
    axis.barh(y, [100 * p.waste for p in wasteful], height=0.7, color="#e08a00")
    for at, p in zip(y, wasteful, strict=True):
        text = (
            f"  {p.waste:.0%} of {p.share:.0%} of the work: {p.advice.split('; ')[0]}"
        )
        axis.text(100 * p.waste, at, text, va="center", fontsize=7, color=FAINT)
    axis.set_yticks(y, [p.path for p in wasteful], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(0, 220)
    axis.set_xticks([0, 25, 50, 75, 100])
    unit = report.topology.chip.unit
    axis.set_xlabel(f"padding in blocks of {unit} x {unit}, %, at most", fontsize=8)
    axis.set_title("matrix units", fontsize=9, loc="left")


def _patch(color: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color)


def _unit(size: float) -> tuple[float, str]:
    return (GIB, "GiB") if size >= GIB / 4 else (2.0**20, "MiB")
