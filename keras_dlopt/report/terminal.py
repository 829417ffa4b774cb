"""A report's tables in the terminal."""

from typing import Any

from keras_dlopt.report.document import Table


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
