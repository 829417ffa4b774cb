"""Tables, and results that show themselves as tables: printed or in notebooks."""

import dataclasses
import html
from typing import Any


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under headings; the first column names the row.

    Attributes:
        title: short.
        columns: headings, the first one for the row names.
        rows: cells as text, as many as there are columns.
        note: what a reader must know to read it, one paragraph; may be empty.
        words: whether the cells are words, not figures: they begin at the left.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    words: bool = False


class Tabled:
    """A result that is shown as its tables.

    `print` writes them as text, Rich as tables, a notebook as HTML.
    """

    def tables(self) -> tuple[Table, ...]:
        """What is shown."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n\n".join(map(to_text, self.tables()))

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(*map(rich_table, self.tables()))

    def _repr_html_(self) -> str:
        """For notebooks."""
        return "\n".join(map(to_fragment, self.tables()))


def rich_table(table: Table) -> Any:
    """The table as a `rich.table.Table`, numbers to the right.

    Example:
        >>> rich_table(Table("Size", ("", "bytes"), (("file", "12"),))).row_count
        1
    """
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(
        title=table.title, caption=table.note or None, title_justify="left"
    )
    made.caption_justify = "left"
    for i, column in enumerate(table.columns):
        made.add_column(
            Text(column),
            justify="left" if table.words or not i else "right",
            no_wrap=not i,
        )
    for row in table.rows:
        # Text, not str: a name in square brackets must not be taken for markup.
        made.add_row(*(Text(cell) for cell in row))
    return made


def to_text(table: Table, *, width: int = 160) -> str:
    """The table as plain text, as wide as it must be.

    Args:
        table: any.
        width: columns at most; longer cells and notes go on below.
    """
    import io

    from rich.console import Console

    written = io.StringIO()
    Console(file=written, width=width, color_system=None).print(rich_table(table))
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def to_markdown(table: Table) -> str:
    r"""The table in GitHub's Markdown, its note below it.

    Example:
        >>> print(to_markdown(Table("Size", ("", "bytes"), (("a|b", "12"),))))
        |  | bytes |
        |---|---:|
        | a\|b | 12 |
    """
    marks = ("---", *("---" if table.words else "---:" for _ in table.columns[1:]))
    lines = [_line(table.columns), f"|{'|'.join(marks)}|", *map(_line, table.rows)]
    return "\n".join([*lines, *(["", table.note] if table.note else [])])


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |"


def to_fragment(table: Table) -> str:
    """The table as HTML to stand in a page of somebody else's, its names escaped.

    Example:
        >>> "<td>a &lt; b</td>" in to_fragment(Table("", ("", ""), (("", "a < b"),)))
        True
    """
    aside = ' style="text-align: left"' if table.words else ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<th>{html.escape(cell)}</th>"
            if not i
            else f"<td{aside}>{html.escape(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in table.rows
    )
    note = f"\n<p><small>{html.escape(table.note)}</small></p>" if table.note else ""
    return (
        f"<p><strong>{html.escape(table.title)}</strong></p>\n"
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>{note}"
    )
