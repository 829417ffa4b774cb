"""`keras-dlopt inspect` and `decompress`."""

import math
import pathlib
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keras_dlopt.cli import inputs

FILE = "A .dlopt file."


def inspect(
    file: Annotated[pathlib.Path, typer.Argument(help=FILE)],
    as_json: inputs.Json = False,
) -> None:
    """Show where the bytes of a compressed file went, variable by variable."""
    from keras_dlopt import storage

    found = storage.ledger_of(file)
    if as_json:
        inputs.say(found, as_json=True)
        return
    table = Table("variable", "shape", "bytes", "bits a weight", "zeros")
    for row in found.rows:
        each = f"{row.bits / max(math.prod(row.shape), 1):.2f}"
        shape = "x".join(map(str, row.shape))
        cells = (row.path, shape, f"{row.bits / 8:,.0f}", each, f"{row.zeros:.1%}")
        table.add_row(*map(Text, cells))
    Console().print(table)
    typer.echo(
        f"{found.file_bytes:,} bytes for {found.plain_bytes:,} ({found.ratio:.1f}x); "
        f"architecture {found.architecture_bytes:,}, container "
        f"{found.container_bytes:,}"
    )


def decompress(
    file: Annotated[pathlib.Path, typer.Argument(help=FILE)],
    out: Annotated[
        pathlib.Path | None, typer.Argument(help="A .keras file; beside it if left.")
    ] = None,
) -> None:
    """Write the model of a compressed file as an ordinary .keras file."""
    from keras_dlopt import storage
    from keras_dlopt.errors import ConfigError

    out = out or file.with_suffix(".keras")
    if out.suffix != ".keras":
        raise ConfigError(f"The file must end in .keras. Received: {str(out)!r}.")
    storage.load_compressed(file).save(out)
    typer.echo(str(out))
