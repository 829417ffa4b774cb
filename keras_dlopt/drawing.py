"""One look for every plot, and its files, without a display.

Every `plot(path=None)` of this package returns a matplotlib figure made here, and
writes it where a path is given; its ending names the format (`.png`, `.svg`).
"""

import io
import os
import re
from typing import Any

BEFORE, AFTER, FAINT = "#9aa4ae", "#0b62c4", "#57606a"
AMBER, GREEN, VIOLET, RED = "#e08a00", "#2a8a57", "#8250df", "#c4352b"
PARTS = (AFTER, AMBER, GREEN, VIOLET, BEFORE)
# Text on coloured cells: as it is, in the light and in the dark.
DARK, LIGHT = "#111111", "#ffffff"
WIDTH = 7.2  # inches
DOTS = 120  # an inch
SMALL = 8.5  # points
# What a page calls the colors, so that it can have others in the dark.
NAMES = {
    "#000000": "ink",
    BEFORE: "before",
    AFTER: "after",
    FAINT: "faint",
    AMBER: "amber",
    GREEN: "green",
    VIOLET: "violet",
    RED: "red",
}


def canvas(height: float, *, width: float = WIDTH) -> Any:
    """A figure without axes, its size in inches."""
    # Figure, not pyplot: no global state, no window, whatever the backend is set to.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DOTS, layout="constrained")


def drawing(
    height: float, *grid: int, width: float = WIDTH, **kwargs: Any
) -> tuple[Any, Any]:
    """A figure and its axes as `subplots` gives them.

    Args:
        height: inches.
        grid: rows and columns of axes.
        width: inches.
        kwargs: of `subplots`.

    Example:
        >>> figure, axis = drawing(2.0)
        >>> axis.figure is figure
        True
    """
    made = canvas(height, width=width)
    return made, made.subplots(*grid, **kwargs)


def literal(name: str) -> str:
    r"""A name of the user's, which matplotlib must not read as a formula.

    Example:
        >>> literal("cost_$")
        'cost_\\$'
    """
    return name.replace("$", r"\$")


def shortened(name: str, length: int = 32) -> str:
    """A long name without its middle: beginning and end tell layers apart.

    Example:
        >>> shortened("encoder/block/attention/kernel", 15)
        'encoder…/kernel'
    """
    if len(name) <= length:
        return name
    half = (length - 1) // 2
    return f"{name[:half]}…{name[len(name) - (length - 1 - half) :]}"


def finished(figure: Any, path: str | os.PathLike[str] | None = None) -> Any:
    """The figure in the package's look, written to `path` if one is given."""
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    if path is not None:
        figure.savefig(path)
    return figure


def png(figure: Any) -> bytes:
    """The figure as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    made: Any = FigureCanvasAgg(figure)
    made.print_png(buffer)
    return buffer.getvalue()


def svg(figure: Any) -> str:
    """The figure as SVG to stand inside a page, whose colors and font it takes.

    Colors become `var(--name)` with the names of `NAMES`; the background is left to
    the page, and text stays text.
    """
    import matplotlib

    buffer = io.StringIO()
    # The same plot is the same text.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dlopt"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*"|<defs>\s*</defs>', _without_id, text)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text, count=2)
    text = text.replace("<use xlink:href=", "<use href=")
    # Attributes only: what a user wrote stays as it is.
    text = re.sub(r' style="[^"]*"', lambda m: _named(m[0]), text)
    return text.strip()


def _without_id(found: re.Match[str]) -> str:
    return "<g" if found[0].startswith("<g") else ""


def _named(style: str) -> str:
    for color, name in NAMES.items():
        style = style.replace(color, f"var(--{name})")
    return re.sub(r"font-family: [^;\"]*;? ?", "", style)
