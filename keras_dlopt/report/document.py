"""What a report says, before anybody decides how it looks.

A `Document` is a title and a list of blocks; `tables` and `html` render it.
"""

import dataclasses
import functools
from typing import Any

from keras_dlopt import drawing
from keras_dlopt.tables import Table


@dataclasses.dataclass(frozen=True, repr=False)
class Figure:
    """A plot.

    Attributes:
        title: short.
        drawn: the matplotlib figure.
        note: what it shows, one paragraph; also the text for those who cannot see it.
    """

    title: str
    drawn: Any
    note: str

    @functools.cached_property
    def png(self) -> bytes:
        """The plot as a PNG file."""
        return drawing.png(self.drawn)

    @functools.cached_property
    def svg(self) -> str:
        """The plot as SVG for a page, whose colors and font it takes."""
        return drawing.svg(self.drawn)


@dataclasses.dataclass(frozen=True)
class Card:
    """One figure that stands out.

    Attributes:
        name: what it is.
        value: it, as text.
        note: what it was before, or the like; may be empty.
    """

    name: str
    value: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: of the page.
        summary: one or two plain sentences.
        blocks: tables and figures, in order.
        footer: how it was made: versions, seed, data.
        cards: the figures to see first.
    """

    title: str
    summary: str
    blocks: tuple[Table | Figure, ...]
    footer: str = ""
    cards: tuple[Card, ...] = ()


def percent(share: float, digits: int = 2) -> str:
    """A share as percent.

    Example:
        >>> percent(0.98765)
        '98.77 %'
    """
    return f"{100 * share:.{digits}f} %"


def points(change: float, digits: int = 2) -> str:
    """A change of a share in percentage points, with its sign.

    Example:
        >>> points(-0.005)
        '-0.50 points'
    """
    return f"{100 * change:+.{digits}f} points"


def size(count: int | float) -> str:
    """A number of bytes with thousands separated.

    Example:
        >>> size(12345)
        '12,345'
    """
    return f"{count:,.0f}"
