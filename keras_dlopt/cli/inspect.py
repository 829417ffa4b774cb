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
    file: inputs.AnyModel,
    as_json: inputs.Json = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Of a .dlopt file read the heads alone.")
    ] = False,
) -> None:
    """Show where the bytes of a file went, or would go, by variable."""
    from keras_dlopt import storage
    from keras_dlopt.errors import ConfigError
    from keras_dlopt.report.variants import ledger_of

    if quick:
        if file.suffix != ".dlopt":
            raise ConfigError(
                f"--quick reads the heads of a .dlopt file. Received: {str(file)!r}. "
                "Leave it out."
            )
        _inspect_heads(file, as_json)
        return
    if file.suffix == ".tflite":
        _inspect_litert(file, as_json)
        return
    compressed = file.suffix == ".dlopt"
    found = storage.ledger_of(file) if compressed else ledger_of(inputs.model_in(file))
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
    if not compressed:
        typer.echo(f"{file} is not compressed. As a .dlopt file it would have:")
    typer.echo(
        f"{found.file_bytes:,} bytes for {found.plain_bytes:,} ({found.ratio:.1f}x); "
        f"architecture {found.architecture_bytes:,}, container "
        f"{found.container_bytes:,}"
    )


def _inspect_heads(file: pathlib.Path, as_json: bool) -> None:
    """The variables of a compressed file, none of which is decoded."""
    from keras_dlopt.storage import CompressedFile

    with CompressedFile(file) as opened:
        rows = [
            {
                "path": name,
                "shape": list(opened.shape(i)),
                "dtype": opened.dtype(i).name,
                "bytes": opened.stored_bytes(i),
            }
            for i, name in enumerate(opened.names)
        ]
    found = {"rows": rows, "file_bytes": file.stat().st_size}
    if as_json:
        inputs.say(found, as_json=True)
        return
    table = Table("variable", "shape", "type", "bytes")
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        table.add_row(
            *map(Text, (row["path"], shape, row["dtype"])), f"{row['bytes']:,}"
        )
    Console().print(table)
    typer.echo(f"{found['file_bytes']:,} bytes")


def _inspect_litert(file: pathlib.Path, as_json: bool) -> None:
    """The constants of a `.tflite` file, and its operations."""
    from keras_dlopt.export.contents import summary

    found = summary(file)
    if as_json:
        inputs.say(found, as_json=True)
        return
    table = Table("constant", "type", "shape", "bytes", "scales")
    for row in found["constants"]:
        cells = [row["name"], row["dtype"], "x".join(map(str, row["shape"]))]
        table.add_row(*map(Text, (*cells, f"{row['bytes']:,}", str(row["scales"]))))
    Console().print(table)
    operations = ", ".join(f"{n} {name}" for name, n in found["operations"].items())
    typer.echo(f"{found['file_bytes']:,} bytes; operations: {operations}")


def decompress(
    file: Annotated[pathlib.Path, typer.Argument(help=FILE)],
    out: Annotated[
        pathlib.Path | None, typer.Argument(help="A .keras file; beside it if left.")
    ] = None,
    as_json: inputs.Json = False,
) -> None:
    """Write a compressed file's model as an ordinary .keras file."""
    from keras_dlopt import auto, storage
    from keras_dlopt.errors import ConfigError

    out = out or file.with_suffix(".keras")
    if out.suffix != ".keras":
        raise ConfigError(f"The file must end in .keras. Received: {str(out)!r}.")
    size = auto.save_keras(storage.load_compressed(file), out)
    inputs.say({"path": out, "bytes": size}, as_json=as_json, text=str(out))
