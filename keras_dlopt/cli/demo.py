"""`keras-dlopt demo`."""

import logging
import pathlib
from typing import Annotated

import typer
from rich.console import Console

from keras_dlopt.cli import inputs
from keras_dlopt.cli.progress import shown

DATA = "digits, mnist, fashion_mnist, tfds:NAME, .npz file, or folder of pictures."


def demo(
    data: Annotated[str, typer.Option(help=DATA)] = "digits",
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of float training; by the size of the data if left."),
    ] = None,
    out: Annotated[
        pathlib.Path, typer.Option(help="Folder for the results.")
    ] = pathlib.Path("dlopt-demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A small network, a few epochs.")
    ] = False,
    seed: inputs.Seed = 0,
    as_json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Train, compress, save, reload, export and report, on real data."""
    from keras_dlopt import demo as job
    from keras_dlopt.report import rich_table

    # TensorFlow's advice about retracing: several models, each traced once, by design.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    settings = job.Settings(data=data, epochs=epochs, out=out, quick=quick, seed=seed)
    with shown(quiet or as_json) as progress:
        result = job.run(settings, progress=progress)
    if as_json:
        inputs.say(result, as_json=True)
        return
    console = Console()
    console.print(rich_table(result.table()))
    console.print(rich_table(result.checks()))
    files = ", ".join(job.FILES)
    console.print(f"{result.seconds:.0f} s. In {out}: {files}", highlight=False)
