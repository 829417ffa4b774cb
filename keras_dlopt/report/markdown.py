"""A report's tables as Markdown."""

from keras_dlopt.report.document import Table


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
