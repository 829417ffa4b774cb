"""`keras-dlopt tpu-check`."""

import pathlib
from typing import Annotated

import typer
from rich.console import Console

from keras_dlopt.cli import inputs
from keras_dlopt.cli import progress as bars
from keras_dlopt.errors import ConfigError

MODEL = "A .keras file, a name in keras_dlopt.models, or module:function."


def tpu_check(
    model: Annotated[str, typer.Argument(help=MODEL)],
    topology: Annotated[
        str, typer.Option(help="Chips to compile for: v5e:2x4, v5p:2x2x2, v6e:2x4.")
    ] = "v5e:2x4",
    batch: Annotated[int, typer.Option(help="Examples a step, over all chips.")] = 1024,
    program: Annotated[
        list[str] | None, typer.Option(help="train, inference; both if left.")
    ] = None,
    search: Annotated[
        bool, typer.Option(help="Look for the largest batch that fits.")
    ] = True,
    policy: Annotated[
        str | None, typer.Option(help="Dtype policy for a model given by name.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="tensorflow or jax; Keras' own if left.")
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="Of custom layers."),
    ] = None,
    unsafe: Annotated[bool, inputs.UNSAFE] = False,
    time_limit: Annotated[float, typer.Option(help="Seconds for everything.")] = 1800.0,
    json: Annotated[
        pathlib.Path | None, typer.Option(help="File to write the report to.")
    ] = None,
    plot: Annotated[
        pathlib.Path | None, typer.Option(help="PNG file to draw the report to.")
    ] = None,
) -> None:
    """Compile a model's steps for TPUs, without one: memory, limits."""
    from keras_dlopt import tpu
    from keras_dlopt.report import rich_table
    from keras_dlopt.report import tpu as shown

    _check_folders(json, plot)
    with bars.shown() as progress:
        report = tpu.check(
            model,
            topology=topology,
            batch=batch,
            programs=tuple(program or ("train", "inference")),
            search=search,
            policy=policy,
            backend=backend,
            imports=tuple(module or ()),
            safe_mode=not unsafe,
            time_limit=time_limit,
            progress=lambda stage: progress.stage(stage, 0),
        )
    console = Console()
    for table in report.tables():
        console.print(rich_table(table))
    for note in report.notes:
        console.print(note, highlight=False)
    if json is not None:
        json.write_text(report.to_json())
    if plot is not None:
        shown.plot(report, plot)
    if not report.ok:
        raise typer.Exit(1)


def _check_folders(*given: pathlib.Path | None) -> None:
    """Before minutes of compiling."""
    for file in given:
        if file is not None and not file.absolute().parent.is_dir():
            raise ConfigError(
                f"The folder of {file} is not there. Make it, or give another file."
            )
