"""Tables of numbers with a column of labels, in `.csv` and `.tsv` files."""

import csv
import io
import pathlib

import numpy as np

from keras_dlopt.checks import nearest
from keras_dlopt.data.split import Raw, held_out
from keras_dlopt.errors import ConfigError, DataError

SUFFIXES = (".csv", ".tsv")
_SEPARATORS = ",;\t|"


def from_csv(path: pathlib.Path, *, label: str | None, seed: int) -> Raw:
    """A row an example; the labels in the column `label`, by name, or in the last one.

    The first line names the columns unless all of it are numbers. Labels are whole
    numbers, texts, or decimal numbers to predict. The rows are shuffled by `seed`, and
    the last 20 % become the test part.
    """
    rows = _rows(path)
    header = None if all(_is_number(cell) for cell in rows[0]) else rows.pop(0)
    if len(rows) < 3:
        raise DataError(f"{path} has {len(rows)} rows of examples; expected 3 or more.")
    columns = header or [f"column {i}" for i in range(1, len(rows[0]) + 1)]
    at = len(columns) - 1 if label is None else _column(label, header, path)
    y = np.array([row.pop(at) for row in rows])
    if not (y != "").all():
        raise DataError(
            f"{path}: row {int(np.argmin(y != '')) + 1} has no label in the column "
            f"{columns[at]!r}. Leave such rows out."
        )
    x = _numbers(rows, columns[:at] + columns[at + 1 :], path)
    return held_out(path.stem, x, _labels(y), seed=seed)


def _rows(path: pathlib.Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        separator = max(_SEPARATORS, key=first.count)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        rows = [row for row in lines if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}.") from error
    widths = {len(row) for row in rows}
    if len(widths) != 1 or widths == {1}:
        raise DataError(
            f"{path} must be a table of two or more columns, as many in each row, "
            "between commas, semicolons or tabs. Received: rows of "
            f"{', '.join(map(str, sorted(widths)[:5])) or 'no'} columns."
        )
    return [[cell.strip() for cell in row] for row in rows]


def _column(label: str, header: list[str] | None, path: pathlib.Path) -> int:
    if header is None:
        raise ConfigError(
            f"{path} has no line of column names, so that no column is called "
            f"{label!r}. Add one, or put the labels into the last column."
        )
    if label not in header:
        raise ConfigError(
            f"{path} has no column {label!r}. It has: {', '.join(header[:20])}. "
            f"{nearest(label, header)}".rstrip()
        )
    return header.index(label)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(
    rows: list[list[str]], columns: list[str], path: pathlib.Path
) -> np.ndarray:
    try:
        x = np.array(rows, dtype=np.float64)
    except ValueError:
        x = None
    if x is not None and np.isfinite(x).all():
        return x
    for number, row in enumerate(rows, 1):
        for name, cell in zip(columns, row, strict=True):
            if not _is_number(cell) or not np.isfinite(float(cell)):
                raise DataError(
                    f"{path}: row {number} has {cell!r} in the column {name!r}; "
                    "expected a number. Leave that column or row out, or write "
                    "categories as one column of 0 and 1 each."
                )
    raise AssertionError("some cell was no number")


def _labels(cells: np.ndarray) -> np.ndarray:
    for kind in (np.int64, np.float64):
        try:
            return cells.astype(kind)
        except ValueError:
            continue
    return cells
