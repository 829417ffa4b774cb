"""`keras-dlopt doctor`."""

import pathlib
from typing import Annotated

import typer
from rich.console import Console

MODEL = "A .keras, .h5 or .dlopt file."
HTML = "File to write the report to."


def doctor(
    model: Annotated[pathlib.Path, typer.Argument(help=MODEL)],
    target: Annotated[
        str | None, typer.Option(help="float, int8 or ethos-u; int8 too if left.")
    ] = None,
    html: Annotated[pathlib.Path | None, typer.Option(help=HTML)] = None,
) -> None:
    """Examine a model: dead weight, int8, risky numbers, and what mends them."""
    from keras_dlopt import report

    found = report.doctor(report.load(model), target=target)
    console = Console()
    for table in found.tables():
        console.print(report.rich_table(table))
    console.print(f"{found.seconds:.1f} s", highlight=False)
    if html is not None:
        found.to_html(html)
