"""`keras-dlopt doctor`."""

from typing import Annotated

import typer
from rich.console import Console

from keras_dlopt.cli import inputs


def doctor(
    model: inputs.Model,
    target: Annotated[
        str | None, typer.Option(help="float, int8 or ethos-u; int8 too if left.")
    ] = None,
    html: inputs.Html = None,
    as_json: inputs.Json = False,
) -> None:
    """Examine a model: dead weight, int8, risky numbers, remedies."""
    from keras_dlopt import report

    found = report.doctor(inputs.model_in(model), target=target)
    if as_json:
        inputs.say(found, as_json=True)
    else:
        console = Console()
        for table in found.tables():
            console.print(report.rich_table(table))
        console.print(f"{found.seconds:.1f} s", highlight=False)
    if html is not None:
        found.to_html(html)
